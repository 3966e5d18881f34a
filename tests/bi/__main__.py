"""`python -m tests.bi`: show the demo's data in Superset until Ctrl-C."""

import signal
from contextlib import suppress

from tests.bi.demo import demo_in_superset
from tests.bi.superset_process import PASSWORD, USER

_PORT = 8088

if __name__ == "__main__":
    with demo_in_superset(_PORT) as (url, dashboards), suppress(KeyboardInterrupt):
        print(f"\nSuperset: {url}  user: {USER}  password: {PASSWORD}\n")  # noqa: T201
        print("\n".join(dashboards))  # noqa: T201
        print("\nCtrl-C stops Superset.")  # noqa: T201
        signal.pause()
