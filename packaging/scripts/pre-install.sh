# shellcheck shell=sh disable=SC2034,SC2154
# Packages for opkg fit every board, since boards have too many names. Their program does not.
# While an image is built, this runs on the machine that builds it.
if [ "$format" = ipk ] && [ -z "${IPKG_INSTROOT:-}" ]; then
	processor=$(uname -m)
	# The kernel has one name for both byte orders of MIPS.
	if [ "$processor" = mips ]; then
		processor=$(sed -n "s/^DISTRIB_ARCH=['\"]\{0,1\}\(mips[a-z]*\).*/\1/p" /etc/openwrt_release)
	fi
	case $processor in
	# Behind the version of an ARM come letters.
	"$machine" | arm"${machine#arm}"*) ;;
	*)
		say "this is for $machine, and this host is $processor"
		exit 1
		;;
	esac
fi
if [ "$doing" = install ] && [ -d /var/run ] && [ -z "${IPKG_INSTROOT:-}" ]; then
	: >"$fresh"
fi
