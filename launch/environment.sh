# Sourced by the other scripts, from the project's root: $PY is the Python of the project's virtual environment
# ($SHIKE_VENV, else .venv), which is made and filled from requirements.txt when it is absent or out of date. An
# environment that was not made here is used if it has all that is required, and filled only with SHIKE_INSTALL=yes.
export SHIKE_VENV=${SHIKE_VENV:-.venv}
export PY=$SHIKE_VENV/bin/python
stamp=$SHIKE_VENV/.requirements-$(sha256sum requirements.txt | cut -c1-12)
if [ ! -e "$stamp" ]; then
  if [ -n "$(ls -A "$SHIKE_VENV" 2>/dev/null)" ] && [ -z "$(compgen -G "$SHIKE_VENV/.requirements-*")" ]; then
    if "$PY" -m pip install -q --dry-run --no-index -r requirements.txt >/dev/null 2>&1; then
      return # everything is there already; nothing is written into an environment of someone else's
    elif [ "${SHIKE_INSTALL:-}" != yes ]; then
      echo "SHIKE_VENV=$SHIKE_VENV was not made by this project and lacks packages of requirements.txt:" \
        "name another folder, or set SHIKE_INSTALL=yes to install into it" >&2
      exit 2
    fi
  fi
  echo "installing into $SHIKE_VENV (a minute or two)"
  [ -x "$PY" ] || python3 -m venv "$SHIKE_VENV"
  touch "$SHIKE_VENV/.requirements-begun" # an interrupted installation is continued without asking
  "$PY" -m pip install -q --disable-pip-version-check -r requirements.txt
  touch "$stamp"
fi
