# shellcheck shell=sh disable=SC2034,SC2154
# Packages for opkg fit every board, since boards have too many names. Their program does not.
# While an image is built, this runs on the machine that builds it.
if [ "$format" = ipk ] && [ -z "${IPKG_INSTROOT:-}" ]; then
	case $(uname -m) in
	"$machine"*) ;;
	*)
		say "this is for $machine, and this host is $(uname -m)"
		exit 1
		;;
	esac
fi
if [ "$doing" = install ] && [ -d /var/run ] && [ -z "${IPKG_INSTROOT:-}" ]; then
	: >"$fresh"
fi
