# shellcheck shell=sh disable=SC2034,SC2154
service=elklet-center
program=/usr/bin/elklet-center
unit=elklet-center.service
settings=/etc/elklet/center.toml
certs=/etc/elklet/center
state='/var/lib/elklet-center /etc/elklet/center'

# The settings are a file of the package, which this makes readable for the center and for nobody else: they may have a key.
prepare() {
	if ! { chown root:elklet-center "$settings" && chmod 640 "$settings"; }; then
		say "cannot let the center read $settings"
	fi
}

# The user outlives the package, as other packages' do: its number must not come to somebody else while files of it are about.
clean_up() { :; }

advise() {
	say "mend $settings, check with '$program check' and start with '$(command_to start)'"
}

welcome() {
	say "'elklet-center token' prints the line that lets a host in, and 'elklet-center link' a link that opens the page"
}
