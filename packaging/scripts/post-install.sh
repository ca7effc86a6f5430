# shellcheck shell=sh disable=SC2034,SC2154
if [ -n "${IPKG_INSTROOT:-}" ]; then
	# OpenWrt is building an image. The program is for another machine than this one.
	"$IPKG_INSTROOT/etc/init.d/$service" enable
	exit
fi
case $doing in
install)
	prepare
	after_install || code=1
	;;
upgrade)
	prepare
	after_upgrade || code=1
	;;
esac
[ "$code" != 0 ] || rm -f "$fresh"
