#!/usr/bin/env bash
# Entry point of every steval image, BentoML's or the Containerfile's.
#   serve [CKPT] [OPTIONS]   the HTTP service on all addresses; CKPT defaults to $STEVAL_CHECKPOINT, keys come from
#                            $STEVAL_API_KEY_FILE, or $STEVAL_NO_AUTH=true opens it to everybody
#   score, predict, batch... any other steval command, with its arguments
#   anything else            is run as it is (bash, python)
set -euo pipefail
if [ -d /app/.venv/bin ]; then
    PATH="/app/.venv/bin:$PATH"
fi
command="${1:-serve}"
case "$command" in
serve)
    shift $(($# > 0 ? 1 : 0))
    # BentoML wants to write there; another user (docker run --user) or a read-only root file system cannot.
    home="${BENTOML_HOME:-${HOME:+$HOME/bentoml}}"
    if [ -z "$home" ] || ! { mkdir -p "$home/bentos" && [ -w "$home/bentos" ]; } 2>/dev/null; then
        BENTOML_HOME="$(mktemp -d)"
        export BENTOML_HOME
    fi
    options=(--host 0.0.0.0 --port "${PORT:-3000}")
    if [ -n "${STEVAL_API_KEY_FILE:-}" ]; then
        options+=(--api-key-file "$STEVAL_API_KEY_FILE")
    elif [ "${STEVAL_NO_AUTH:-}" = true ]; then
        options+=(--no-auth)
    fi
    case "${1:-}" in
    "" | -*)
        if [ -n "${STEVAL_CHECKPOINT:-}" ]; then
            options=("$STEVAL_CHECKPOINT" "${options[@]}")
        fi
        ;;
    esac
    exec steval serve "${options[@]}" "$@"
    ;;
demo | prepare | init | finetune | sweep | predict | score | load | metrics | pack | batch | compare | doctor | calibrate | inspect | convert | merge | push | -*)
    exec steval "$@"
    ;;
*)
    exec "$@"
    ;;
esac
