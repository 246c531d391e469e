# A shell pipeline: numbers that must come out whole, in order and once, whatever happens to the sandbox meanwhile.
# While there is a /tmp/hold it stands still: /tmp/held then says at which number, and a line into /tmp/gate lets it go on.
nonce=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
mkfifo /tmp/gate
exec 8<>/tmp/gate 9>>/var/log/numbers
(
  number=0
  while :; do
    number=$((number + 1))
    echo "$number"
    if [ -e /tmp/hold ]; then
      echo "$number" >/tmp/held
      read -r _ <&8
    fi
    sleep 0.01
  done
) | sed -u 's/^/number /' | tee /tmp/copy | while read -r word number; do
  echo "$nonce $word $number"
  echo "$number" >&9
done
