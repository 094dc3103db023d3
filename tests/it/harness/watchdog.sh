#!/bin/sh
# Ends a server of the tests and removes its files: on SIGTERM at once, else when nobody has held its lease for half a
# minute. Runs as the server's user. Arguments: the server's directory, the command that ends it.
directory=$1
shift
exec 9<"$directory/lease"

# Whoever wants a lease while we hold the lock waits, and then finds no server and starts another.
# stop COMMAND...
stop() {
    flock --nonblock 9
    "$@" 9<&-
    cd / && rm -rf "$directory"
    exit
}
nap=
trap '[ -z "$nap" ] || kill "$nap"; stop "$@"' TERM

while [ -d "$directory" ]; do
    sleep 5 9<&- &
    nap=$!
    wait "$nap"
    nap=
    if [ -z "$(find "$directory/lease" -newermt '-30 seconds')" ] && flock --nonblock 9; then stop "$@"; fi
done
