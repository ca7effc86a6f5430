# shellcheck shell=bash
# What the guests of .ci/packages-boot share. Each names its steps, and before them
#   state_of_failure   prints what explains a failure
#   leaves             writes into out/ what is worth keeping

# What is said appears on the console at once: a guest that hangs writes no results.
exec > >(tee /dev/ttyS0) 2>&1

# A step that starts the system anew ends with this code, and the steps behind it follow after that.
AGAIN=77

main() {
  local wanted began step
  read -ra wanted <steps
  [ ! -e steps.left ] || read -ra wanted <steps.left
  [ "$(cat /sys/class/net/lo/operstate)" != down ] || ip link set lo up
  trap at_exit EXIT
  while [ "${#wanted[@]}" -gt 0 ]; do
    step=${wanted[0]}
    wanted=("${wanted[@]:1}")
    began=$SECONDS
    "$step"
    echo "ok $step ($((SECONDS - began)) s)"
  done
}

at_exit() {
  local code=$?
  set +e
  if [ "$code" != 0 ] && [ "$code" != "$AGAIN" ]; then
    state_of_failure
    tail -n 20 /var/log/elklet/elklet.log /etc/elkeid/log/elklet.log
    cat said
  fi
  leaves
}

# Goes on with the remaining steps after the system has gone down and come up.
restart_system() { # function that checks what is there then
  echo "$1 ${wanted[*]}" >steps.left
  echo "ok $step (the system starts anew)"
  exit "$AGAIN"
}

fail() {
  echo "FAILED: $*"
  exit 1
}

# Runs a command and keeps what it says. Its exit code has to be the given one.
gives() { # code, command...
  local expected=$1 code=0
  shift
  "$@" >said 2>&1 </dev/null || code=$?
  [ "$code" = "$expected" ] || fail "'$*' gave $code, expected $expected"
}

says() { # text
  grep -qF -- "$1" said || fail "it did not say: $1"
}

# Waits until a command succeeds.
until_it() { # seconds, command...
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "in vain: $*"
    sleep 0.2
  done
}

connected() { elklet status; }

start_center() { # options...
  chmod +x center
  ./center --certs certs --quiet "$@" >center.log 2>&1 &
  center=$!
  until_it 60 grep -q listening center.log
}

# Gives an agent that center's certificates and address.
configure() { # directory of its settings
  cp certs/{ca.crt,client.crt,client.key} "$1/certs"
  printf '[server]\nprivate = ["127.0.0.1:6751"]\n' >"$1/elklet.toml"
}

modes() { # "mode path"...
  local directory
  for directory in "$@"; do
    [ "$(stat -c '%a %n' "${directory#* }")" = "$directory" ] || fail "$(stat -c '%a %n' "${directory#* }"), expected $directory"
  done
}

gone() { # path...
  local path
  for path in "$@"; do
    if [ -e "$path" ] || [ -L "$path" ]; then
      fail "$path is still there"
    fi
  done
}
