"""The settings of the Superset that `make bi` and the tests of this folder start; it serves this machine only."""

import os
from pathlib import Path

_HOME = Path(os.environ["SUPERSET_HOME"])

SQLALCHEMY_DATABASE_URI = f"sqlite:///{_HOME / 'superset.db'}?check_same_thread=false"
SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]
