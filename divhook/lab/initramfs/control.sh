# shellcheck shell=sh
# The guest's end of the control channel on the second serial port: it needs no network.
#
#   RUN <id> <seconds> <base64 of a shell command> END     to the guest, one line
#   OUT <id> <exit code> <base64 of gzipped output> END     back, one line
#
# The empty command and empty output are "-". A line that is not whole is ignored: the port may have lost its head before this end was open. On
# a time-out the command's whole session is killed and the exit code is 137.
exec 2>/dev/null
stty -F /dev/ttyS1 raw -echo 115200
exec 3<>/dev/ttyS1
while read -r word id limit command end <&3; do
  [ "$word $end" = "RUN END" ] || continue
  [ "$command" != - ] || {
    printf 'OUT %s 0 - END\n' "$id" >&3
    continue
  }
  echo "$command" | base64 -d >/tmp/control.sh 2>/dev/null || continue
  setsid sh /tmp/control.sh </dev/null >/tmp/control.out 2>&1 3>&- &
  session=$!
  setsid sh -c "sleep $limit; kill -9 -$session" >/dev/null 2>&1 3>&- &
  watchdog=$!
  wait "$session"
  code=$?
  kill -9 "$watchdog" "-$watchdog" 2>/dev/null
  wait "$watchdog" 2>/dev/null
  printf 'OUT %s %s %s END\n' "$id" "$code" "$(gzip -c /tmp/control.out | base64 | tr -d '\n')" >&3
done
