# shellcheck shell=sh disable=SC2034,SC2154
case $doing in
remove)
	clean_up
	reload_manager
	;;
purge) purge ;;
esac
