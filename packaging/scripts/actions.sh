# shellcheck shell=sh disable=SC2034,SC2154
# Each package manager has its own words for what is going on. This is the only place that knows them.

# Where preinstall notes that this is an installation. To a later script, dpkg and opkg call an installation after a removal an
# upgrade.
fresh=/var/run/$service.fresh

# Prints install, upgrade, remove or purge, or nothing where there is nothing to do.
action() { # the package manager's arguments...
	case $format:$step in
	# An upgrade's own steps have scripts of their own.
	apk:pre-upgrade | apk:post-upgrade | archlinux:pre-upgrade | archlinux:post-upgrade) echo upgrade ;;
	apk:pre-install | apk:post-install | archlinux:pre-install | archlinux:post-install) echo install ;;
	apk:pre-remove | apk:post-remove | archlinux:pre-remove | archlinux:post-remove) echo remove ;;
	# The number of versions that are there afterwards.
	rpm:pre-install | rpm:post-install)
		if [ "$1" = 1 ]; then echo install; else echo upgrade; fi
		;;
	rpm:pre-remove | rpm:post-remove)
		if [ "$1" = 0 ]; then echo remove; fi
		;;
	deb:pre-install | ipk:pre-install) echo "${1:-}" ;;
	deb:post-install | ipk:post-install)
		if [ "$1" = configure ]; then
			if [ -e "$fresh" ]; then echo install; else echo upgrade; fi
		fi
		;;
	deb:pre-remove | ipk:pre-remove | deb:post-remove | ipk:post-remove)
		case $1 in
		remove | purge) echo "$1" ;;
		# opkg gives no word to postrm.
		'') echo remove ;;
		esac
		;;
	esac
}

doing=$(action "$@")
