# A shell pipeline: numbers that must come out whole, in order and once, whatever happens to the sandbox meanwhile.
nonce=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
exec 9>>/var/log/numbers
(
  number=0
  while :; do number=$((number + 1)); echo "$number"; sleep 0.01; done
) | sed -u 's/^/number /' | tee /tmp/copy | while read -r word number; do
  echo "$number" >&9
  echo "$nonce $word $number"
done
