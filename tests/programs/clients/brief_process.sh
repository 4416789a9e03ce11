# PORT: connects, has one line answered, and ends; with SECOND set, connects again meanwhile.
exec 3<>"/dev/tcp/127.0.0.1/$1"
echo hello >&3
read -r answer <&3
[ "$answer" = HELLO ] || exit 1
if [ -n "$SECOND" ]; then
  exec 4<>"/dev/tcp/127.0.0.1/$1"
  echo again >&4
  read -r answer <&4
  [ "$answer" = AGAIN ] || exit 1
fi
if [ -n "$LASTS" ]; then
  sleep 0.2
fi
