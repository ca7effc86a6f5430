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
# The files of the center's package name its user's group.
if [ "$service" = elklet-center ] && ! id "$service" >/dev/null 2>&1; then
	made=
	if command -v useradd >/dev/null 2>&1; then
		useradd --system --user-group --no-create-home --home-dir /var/lib/elklet-center --shell /usr/sbin/nologin "$service" && made=1
	else
		addgroup -S "$service" && adduser -S -D -H -h /var/lib/elklet-center -s /sbin/nologin -G "$service" "$service" && made=1
	fi
	if [ -z "$made" ]; then
		say "the user $service cannot be made"
		exit 1
	fi
fi
if [ "$doing" = install ] && [ -d /var/run ] && [ -z "${IPKG_INSTROOT:-}" ]; then
	: >"$fresh"
fi
