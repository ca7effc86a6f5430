#!/bin/sh
# Installs Elklet where there is no package for it, removes it, or replaces its version by this one.
#   ./install.sh                        installs, or upgrades
#   ./install.sh --uninstall            removes it, and leaves settings, certificates, state and logs
#   ./install.sh --uninstall --purge    removes these too
# After an installation, this file lies in /usr/share/elklet too.
set -u
umask 022
here=$(cd "$(dirname "$0")" && pwd) || exit
# shellcheck disable=SC2034 # The files below read it.
format=tarball
# shellcheck disable=SC2034
doing=install
# shellcheck source=packaging/scripts/elklet.sh
. "$here/elklet.sh"
# shellcheck source=packaging/scripts/lib.sh
. "$here/lib.sh"
# Man pages and completions, where the programs that read them look.
manual='/usr/share/man/man1/elklet.1.gz
/usr/share/man/man5/elklet.toml.5.gz
/usr/share/bash-completion/completions/elklet
/usr/share/zsh/site-functions/_elklet
/usr/share/fish/vendor_completions.d/elklet.fish'

main() {
	case "$*" in
	'') install_all ;;
	--uninstall) uninstall ;;
	'--uninstall --purge' | '--purge --uninstall')
		uninstall
		purge
		;;
	*)
		sed -n 's/^# \{0,1\}//p' "$0" | head -6
		exit 2
		;;
	esac
}

install_all() {
	[ "$(id -u)" = 0 ] || fail "only root can install it"
	[ -x "$here/bin/elklet" ] || fail "there is no program beside $0; run install.sh from the unpacked archive"
	refuse_over_package
	# Everything that can be wrong with the new version is found before the old one is touched.
	program=$here/bin/elklet
	works || fail "the program cannot be executed here: $("$program" --version 2>&1)"
	if [ -x /usr/bin/elklet ] && old=$(/usr/bin/elklet --version 2>/dev/null); then
		usable && is_usable=1 || is_usable=
		program=/usr/bin/elklet
		if [ -z "$is_usable" ] && is_running; then
			fail "the new version could not start with these settings: $said; $old runs on, and nothing was changed"
		fi
		lay_out
		after_upgrade || back "$old"
		say "upgraded from $old to $("$program" --version)"
	else
		program=/usr/bin/elklet
		lay_out
		after_install || exit 1
	fi
}

# The package manager would not know what became of its files.
refuse_over_package() {
	if { command -v dpkg && dpkg -S /usr/bin/elklet; } >/dev/null 2>&1 ||
		{ command -v rpm && rpm -qf /usr/bin/elklet; } >/dev/null 2>&1 ||
		{ command -v pacman && pacman -Qo /usr/bin/elklet; } >/dev/null 2>&1 ||
		{ command -v apk && apk info --who-owns /usr/bin/elklet | grep -q 'is owned by'; } >/dev/null 2>&1; then
		fail "/usr/bin/elklet belongs to a package; upgrade or remove that"
	fi
}

lay_out() {
	mkdir -p /etc/elklet/certs /usr/bin /usr/share/elklet /usr/share/doc/elklet /usr/lib/elklet/plugins/procwatch ||
		fail "cannot make the directories"
	chmod 700 /etc/elklet/certs
	if [ -e /usr/bin/elklet ]; then
		cp -p /usr/bin/elklet /usr/share/elklet/previous || fail "cannot keep the old version"
	fi
	put 755 bin/elklet /usr/bin/elklet
	put 755 bin/elklet-procwatch /usr/lib/elklet/plugins/procwatch/procwatch
	put 644 elklet.toml /usr/share/elklet/elklet.toml
	put 644 lib.sh /usr/share/elklet/lib.sh
	put 644 elklet.sh /usr/share/elklet/elklet.sh
	put 755 install.sh /usr/share/elklet/install.sh
	put 644 LICENSE /usr/share/doc/elklet/LICENSE
	put 644 README.md /usr/share/doc/elklet/README.md
	# Where nobody reads them there is no directory for them.
	for place in $manual; do
		if [ -d "${place%/*}" ]; then
			put 644 "manual/${place##*/}" "$place"
		fi
	done
	if command -v systemctl >/dev/null 2>&1; then
		mkdir -p /etc/systemd/system
		put 644 services/elklet.service /etc/systemd/system/elklet.service
		put 644 services/elklet-hardened.conf /usr/share/doc/elklet/elklet-hardened.conf
	elif [ -e /sbin/openrc-run ]; then
		put 755 services/elklet.openrc /etc/init.d/elklet
	elif [ -e /etc/rc.common ]; then
		put 755 services/elklet.procd /etc/init.d/elklet
	elif [ -d /etc/init.d ]; then
		put 755 services/elklet.sysvinit /etc/init.d/elklet
	else
		say "no service manager that this knows is here: have yours run '/usr/bin/elklet run'"
	fi
	prepare
	# Files of a running SELinux policy need their labels.
	if command -v restorecon >/dev/null 2>&1; then
		restorecon -RF /usr/bin/elklet /usr/lib/elklet /etc/elklet 2>/dev/null
	fi
}

# A reader sees the old file or the new one, and a running program keeps its own.
put() { # mode, file, place
	if ! { cp "$here/$2" "$3.new" && chmod "$1" "$3.new" && mv -f "$3.new" "$3"; }; then
		fail "cannot write $3"
	fi
}

back() { # old version
	mv -f /usr/share/elklet/previous /usr/bin/elklet && tell_manager start
	fail "$1 is back"
}

uninstall() {
	[ "$(id -u)" = 0 ] || fail "only root can remove it"
	refuse_over_package
	before_removal
	rm -rf /usr/bin/elklet /usr/lib/elklet /usr/share/doc/elklet /usr/share/elklet
	# shellcheck disable=SC2086 # They are several.
	rm -f $manual
	rm -f /etc/systemd/system/elklet.service /etc/init.d/elklet
	reload_manager
	say "removed"
}

fail() {
	say "$*"
	exit 1
}

main "$@"
