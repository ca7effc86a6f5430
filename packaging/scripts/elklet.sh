# shellcheck shell=sh disable=SC2034,SC2154
service=elklet
program=/usr/bin/elklet
unit=elklet.service
settings=/etc/elklet/elklet.toml
certs=/etc/elklet/certs
state='/etc/elklet /var/lib/elklet /var/log/elklet /run/elklet'

# The settings are the administrator's from the first day on. As a file of the package they would have dpkg ask what to do about
# every new version of the example, and the agent's own update has nobody to answer.
prepare() {
	if [ ! -e "$settings" ] && [ "$doing" = install ]; then
		(umask 077 && cp /usr/share/elklet/elklet.toml "$settings")
	fi
}

clean_up() { :; }

advise() { advise_about_agent; }
welcome() { :; }
