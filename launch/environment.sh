# Sourced by the other scripts, from the project's root: $PY is the Python of the project's virtual environment
# ($SHIKE_VENV, else .venv), which is made and filled from requirements.txt when it is absent or out of date. An
# environment that was not made here is used if it has all that is required, and filled only with SHIKE_INSTALL=yes.
export SHIKE_VENV=${SHIKE_VENV:-.venv}
export PY=$SHIKE_VENV/bin/python
stamp=$SHIKE_VENV/.requirements-$(sha256sum requirements.txt | cut -c1-12)
if [ ! -e "$stamp" ]; then
  if [ -n "$(ls -A "$SHIKE_VENV" 2>/dev/null)" ] && [ -z "$(compgen -G "$SHIKE_VENV/.requirements-*")" ]; then
    if [ -x "$PY" ] && ! "$PY" -m pip --version >/dev/null 2>&1; then
      echo "SHIKE_VENV=$SHIKE_VENV has no pip, which would say whether all packages of requirements.txt are there:" \
        "name another folder, or install pip into it" >&2
      exit 2
    elif "$PY" -m pip install -q --dry-run --no-index -r requirements.txt >/dev/null 2>&1; then
      return # everything is there already; nothing is written into an environment of someone else's
    elif [ "${SHIKE_INSTALL:-}" != yes ]; then
      echo "SHIKE_VENV=$SHIKE_VENV was not made by this project and lacks packages of requirements.txt:" \
        "name another folder, or set SHIKE_INSTALL=yes to install into it" >&2
      exit 2
    fi
  fi
  python_version=$("${PYTHON:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [[ $python_version =~ ^(2\..*|3\.[0-9]|3\.10)$ ]]; then
    echo "${PYTHON:-python3} is Python $python_version: expected 3.11 or newer (PYTHON=python3.12 names another)" >&2
    exit 2
  fi
  # The marker says that the folder is this project's: an interrupted installation is continued without asking.
  mkdir -p "$SHIKE_VENV"
  touch "$SHIKE_VENV/.requirements-begun"
  exec {lock}>"$SHIKE_VENV/.requirements-lock"
  if command -v flock >/dev/null; then flock "$lock"; fi # a second first start waits for the first
  if [ ! -e "$stamp" ]; then
    echo "installing into $SHIKE_VENV (a minute or two)"
    "$PY" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv "$SHIKE_VENV"
    "$PY" -m pip install -q --disable-pip-version-check -r requirements.txt
    rm -f "$SHIKE_VENV"/.requirements-???????????? # of other versions of the file, whose packages are gone now
    touch "$stamp"
  fi
  exec {lock}>&-
fi
