#!/usr/bin/env bash
# Stops the machine when for GPT_IDLE_MINUTES nothing has used it: no pipeline, nobody on a terminal or in a Session
# Manager session (a tunnel to MLflow's page is one), no load, no installation under way. A timer runs it; as root.
set -euo pipefail
shopt -s inherit_errexit # what cannot be told is no reason to stop
run=${GPT_RUN:-/run/gpt}
proc=${GPT_PROC:-/proc}

# Prints why the machine is in use, or nothing.
in_use() {
  local units load
  units=$(systemctl list-units --plain --no-legend --state=active,activating,deactivating 'gpt-pipeline-*')
  if [ -n "$units" ]; then
    echo "${units%% *} is running"
  elif pgrep -f ssm-session-worker >/dev/null; then
    echo "a Session Manager session is open"
  elif [ -n "$(who)" ]; then
    echo "somebody is logged in"
  elif [ "$(systemctl is-active cloud-final.service)" = activating ]; then
    echo "the installation is under way"
  else
    read -r _ load _ <"$proc/loadavg" # the mean of five minutes
    if awk -v load="$load" 'BEGIN { exit !(load >= 0.2) }'; then echo "the load is $load"; fi
  fi
}

read -r uptime _ <"$proc/uptime"
now=${uptime%.*} # seconds since the start, which a change of the clock leaves alone
used=0           # nothing noted yet: the start itself was the last use
[ ! -s "$run/last-use" ] || used=$(<"$run/last-use")

reason=$(in_use)
if [ -n "$reason" ]; then
  mkdir -p "$run"
  echo "$now" >"$run/last-use"
  echo "in use: $reason"
elif ((now - used >= GPT_IDLE_MINUTES * 60)); then
  echo "idle for $(((now - used) / 60)) minutes: stopping the machine"
  shutdown -h now
else
  echo "idle for $(((now - used) / 60)) of $GPT_IDLE_MINUTES minutes"
fi
