# Sourced by the other scripts, from the project's root: $PY is the Python of the project's virtual environment
# ($SHIKE_VENV, else .venv), which is made and filled from requirements.txt when it is absent or out of date.
export SHIKE_VENV=${SHIKE_VENV:-.venv}
export PY=$SHIKE_VENV/bin/python
stamp=$SHIKE_VENV/.requirements-$(sha256sum requirements.txt | cut -c1-12)
if [ ! -e "$stamp" ]; then
  echo "installing into $SHIKE_VENV (a minute or two)"
  python3 -m venv "$SHIKE_VENV"
  "$PY" -m pip install -q --disable-pip-version-check -r requirements.txt
  touch "$stamp"
fi
