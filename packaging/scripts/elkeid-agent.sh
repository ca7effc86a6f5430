# shellcheck shell=sh disable=SC2034,SC2154
service=elkeid-agent
program=/etc/elkeid/elkeid-agent
# Where Elkeid's own package has it, so that its link stays good.
unit=/etc/elkeid/elkeid-agent.service
settings=/etc/elkeid/elklet.toml
certs=/etc/elkeid/certs
state=/etc/elkeid

# As Elkeid's own package does, it takes the host's place from the environment, and brings the script for sysvinit only where there
# is no systemd.
prepare() {
	for pair in "id=${SPECIFIED_AGENT_ID:-}" "idc=${SPECIFIED_IDC:-}" "region=${SPECIFIED_REGION:-}"; do
		if [ -n "${pair#*=}" ]; then
			/etc/elkeid/elkeidctl --workdir /etc/elkeid set "--${pair%%=*}" "${pair#*=}" || say "cannot set ${pair%%=*}"
		fi
	done
	if ! command -v systemctl >/dev/null 2>&1 && [ -d /etc/init.d ]; then
		cp /etc/elkeid/elkeid-agent.sysvinit /etc/init.d/elkeid-agent
		chmod 755 /etc/init.d/elkeid-agent
		# An agent that Elkeid's own elkeidctl has started is started again by cron, which calls that program. This one leaves it to
		# the script, which takes an agent without this file for one that was stopped on purpose.
		if [ -e /etc/cron.d/elkeid-agent ]; then
			echo '* * * * * root /etc/init.d/elkeid-agent check' >/etc/cron.d/elkeid-agent
			: >>/var/run/elkeid-agent.pid
		fi
	fi
}

clean_up() {
	rm -f /etc/init.d/elkeid-agent /etc/cron.d/elkeid-agent
}

advise() { advise_about_agent; }
welcome() { :; }
