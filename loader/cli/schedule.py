"""Defines `loader schedule`, which runs the transform whenever events have landed."""

import click

from loader.cli import context, services
from loader.runtime.logs import configure_logs
from loader.runtime.signals import stopped_by_signals
from loader.runtime.supervisor import follow_supervisor
from loader.settings import read_settings
from loader.transform.scheduler import Schedule


@click.command()
@services.every_option
@context.vars_option
def schedule(every: float | None, variables: str | None) -> None:
    """Run the transform whenever events have landed, until stopped.

    Several schedulers may run, on any machines: one works, the others stand by. The first SIGTERM or Ctrl-C lets a
    running transform finish. The second signal ends the transform at once.
    """
    settings = context.with_variables(read_settings(), variables)
    configure_logs()
    follow_supervisor()
    with stopped_by_signals() as stop:
        Schedule(settings, settings.every if every is None else every).run(stop)
