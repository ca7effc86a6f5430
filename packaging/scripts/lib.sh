# shellcheck shell=sh disable=SC2034,SC2154
# What the packages' scripts and install.sh share. Plain POSIX sh: dash, busybox and bash run it, on hosts with systemd, OpenRC,
# procd or sysvinit, and in a chroot or container in which nothing of them runs.
#
# The build puts these before it:
#   format    deb, rpm, apk, ipk, archlinux or tarball
#   service   the service's name
#   program   the agent
#   unit      what systemctl is given: a name, or the path of a unit outside systemd's directories
#   settings  the file of settings
#   certs     the directory of certificates
#   state     the directories that a purge removes
#   machine   the processor, as uname -m has it
#   doing     install, upgrade, remove, purge or nothing
#   prepare, clean_up   what else this package does once its files are there, and once they are gone
#   advise, welcome     say what the administrator has to do before it can start, and what they can do once it runs

say() {
	echo "$service: $*" >&2
}

# Sets `said` to what the agent finds wrong with its settings. Returns true if it could start with them.
usable() {
	said=$("$program" check 2>&1) && return 0
	said=$(echo "$said" | sed -n '/./{p;q;}')
	return 1
}

# Returns true if the program can be executed on this host and is one of Elklet's.
works() {
	case $("$program" --version 2>&1) in
	"elklet "* | "elklet-center "*) return 0 ;;
	*) return 1 ;;
	esac
}

# Returns true inside the agent's own update. To restart the service from there would kill the package manager at its work, and
# the agent executes its new version by itself. To one of Elkeid's own, the service manager does it.
inside_agent() {
	ancestor=$$
	while [ "${ancestor:-0}" -gt 1 ]; do
		# Once the file is replaced, the name ends in " (deleted)".
		case $(readlink "/proc/$ancestor/exe" 2>/dev/null) in
		"$program"*) return 0 ;;
		esac
		ancestor=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$ancestor/status" 2>/dev/null)
	done
	return 1
}

# Prints the service manager that runs here, or nothing.
manager() {
	# In a chroot, the first process lives in another root than this one.
	# shellcheck disable=SC3013 # dash, busybox and bash know -ef.
	if [ -e /proc/1/root/. ] && ! [ /proc/1/root/. -ef /. ]; then
		return
	fi
	if [ -d /run/systemd/system ]; then
		echo systemd
	elif [ -e /run/openrc/softlevel ]; then
		echo openrc
	elif [ -x /sbin/procd ] && [ -e /etc/rc.common ]; then
		echo procd
	elif [ "$(cat /proc/1/comm 2>/dev/null)" = init ] && [ -x "/etc/init.d/$service" ]; then
		echo sysvinit
	fi
}

# Debian lets an administrator forbid packages to start services.
may_start() {
	if [ -x /usr/sbin/policy-rc.d ]; then
		/usr/sbin/policy-rc.d "$service" start
		[ $? != 101 ] || return 1
	fi
}

# Prints the command of the service manager that does this.
command_to() { # start, stop, try-restart
	case $(manager) in
	systemd | '') echo "systemctl $1 $service" ;;
	openrc)
		case $1 in
		# OpenRC's word for it.
		try-restart) echo "rc-service --ifstarted $service restart" ;;
		*) echo "rc-service $service $1" ;;
		esac
		;;
	procd)
		case $1 in
		try-restart) echo "/etc/init.d/$service restart" ;;
		*) echo "/etc/init.d/$service $1" ;;
		esac
		;;
	sysvinit) echo "/etc/init.d/$service $1" ;;
	esac
}

tell_manager() { # start, stop, try-restart
	case $(manager) in
	'') return 0 ;;
	procd)
		if [ "$1" = try-restart ] && ! is_running; then
			return 0
		fi
		;;
	esac
	# shellcheck disable=SC2091 # The command, and not its output, is what is wanted.
	$(command_to "$1")
}

is_running() {
	case $(manager) in
	systemd) systemctl --quiet is-active "$service" ;;
	openrc) rc-service --quiet "$service" status >/dev/null 2>&1 ;;
	procd) "/etc/init.d/$service" running ;;
	sysvinit) "/etc/init.d/$service" status >/dev/null 2>&1 ;;
	*) return 1 ;;
	esac
}

reload_manager() {
	if [ "$(manager)" = systemd ]; then
		systemctl daemon-reload || say "systemctl daemon-reload failed"
	fi
}

# Has every service manager that is installed start the service at boot. Several may be, and an image has none that runs.
enable_service() {
	if command -v systemctl >/dev/null 2>&1; then
		systemctl --quiet enable "$unit" || say "systemctl enable failed"
	fi
	[ -x "/etc/init.d/$service" ] || return 0
	if command -v rc-update >/dev/null 2>&1; then
		rc-update --quiet add "$service" default
	elif [ -e /etc/rc.common ]; then
		"/etc/init.d/$service" enable
	elif command -v update-rc.d >/dev/null 2>&1; then
		update-rc.d "$service" defaults >/dev/null
	elif command -v chkconfig >/dev/null 2>&1; then
		chkconfig --add "$service"
	fi || say "/etc/init.d/$service could not be enabled"
}

disable_service() {
	if command -v systemctl >/dev/null 2>&1; then
		# A unit outside systemd's directories was linked into them, and only its name unlinks it.
		systemctl --quiet disable "$service" 2>/dev/null || say "systemctl disable failed"
	fi
	[ -x "/etc/init.d/$service" ] || return 0
	if command -v rc-update >/dev/null 2>&1; then
		rc-update --quiet delete "$service" default
	elif [ -e /etc/rc.common ]; then
		"/etc/init.d/$service" disable
	elif command -v update-rc.d >/dev/null 2>&1; then
		# It removes the links of a script that is still there only if it is forced to.
		update-rc.d -f "$service" remove >/dev/null
	elif command -v chkconfig >/dev/null 2>&1; then
		chkconfig --del "$service"
	fi || say "/etc/init.d/$service could not be disabled"
}

say_what_to_do() {
	say "installed, but not started: $said"
	advise
}

# What the administrator has to do before the agent can start.
advise_about_agent() {
	say "put ca.crt, client.crt and client.key into $certs and the server's address into $settings"
	# OpenWrt's settings name a work directory, and init writes over no file in which something is set.
	[ "$format" = ipk ] || say "'$program init --server HOST:PORT --certs DIRECTORY' does both"
	say "then check with '$program check' and start with '$(command_to start)'"
}

after_install() {
	reload_manager
	enable_service
	if ! works; then
		say "$program cannot be executed here: $("$program" --version 2>&1)"
		return 1
	fi
	if inside_agent; then
		say "the agent that has installed this starts it"
	elif ! usable; then
		say_what_to_do
	elif [ -z "$(manager)" ] || ! may_start; then
		say "installed and enabled; it starts when this system does"
		welcome
	elif tell_manager start; then
		say "installed and started"
		welcome
	else
		say "installed, but '$(command_to start)' failed"
		return 1
	fi
}

# The running agent goes on with the old program, whose file is deleted, unless the new one can take over.
after_upgrade() {
	reload_manager
	if ! works; then
		say "the new version cannot be executed here: $("$program" --version 2>&1)"
		! is_running || say "the old version runs on until it is stopped"
		return 1
	fi
	if ! usable; then
		# An agent that updates itself reads the exit code, and goes on as it is.
		if is_running || inside_agent; then
			say "the new version could not start with these settings: $said"
			say "the old version runs on; mend $settings and run '$(command_to try-restart)'"
			return 1
		fi
		say_what_to_do
	elif inside_agent; then
		say "the agent that has installed this restarts itself"
	elif ! tell_manager try-restart; then
		say "'$(command_to try-restart)' failed"
		return 1
	fi
}

before_removal() {
	tell_manager stop || say "'$(command_to stop)' failed"
	disable_service
}

# Removes the directories, but nothing that is mounted in them: plugins may lie on other disks. Nor what the center has beside the agent.
purge() {
	for directory in $state; do
		[ -d "$directory" ] || continue
		if [ "$service" != elklet-center ] && [ -e /etc/elklet/center.toml ]; then
			find "$directory" -xdev ! -type d ! -path '/etc/elklet/center[./]*' -exec rm -f {} +
		else
			find "$directory" -xdev ! -type d -exec rm -f {} +
		fi
		find "$directory" -xdev -depth -type d -exec rmdir {} + 2>/dev/null
		[ ! -d "$directory" ] || say "$directory is left: another package or something mounted is in it, or it was written to meanwhile"
	done
}
