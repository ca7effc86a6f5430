# shellcheck shell=sh disable=SC2034,SC2154
if [ "$doing" = remove ]; then
	before_removal
fi
