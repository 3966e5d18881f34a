"""Configures the logs of long-lived processes: lines of JSON, or lines for people on a terminal.

A line states an event of the process and its numbers. No line contains a payload, an address or a key.
"""

import logging
import sys
import traceback

import structlog

from loader.runtime.terminal import escape_controls


def _describe_exception(exc_info: structlog.typing.ExcInfo) -> str:
    """Return the class and the place of an exception and of its causes; the messages may quote an event."""
    lines = []
    error: BaseException | None = exc_info[1]
    while error is not None:
        frames = (
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        )
        lines.append(f"{type(error).__module__}.{type(error).__qualname__} at {', '.join(frames) or 'no frame'}")
        error = error.__cause__ or error.__context__
    return "; because of ".join(lines)


def _escape_values(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace control characters in texts by escapes, because a reason may quote a name or a path from outside."""
    return {name: escape_controls(value) if isinstance(value, str) else value for name, value in line.items()}


def _render_line(_: object, __: str, line: structlog.typing.EventDict) -> str:
    """Return a line for a person: the local time, the message, and its values."""
    moment, event, level = (str(line.pop(name, "")) for name in ("timestamp", "event", "level"))
    values = "".join(f" {name}={value}" for name, value in line.items())
    return f"{moment}  {'' if level == 'info' else f'{level}: '}{event}{values}"


def configure_logs(level: int = logging.INFO) -> None:
    """Send all log lines to stderr, those of the libraries too, in one format.

    Args:
        level: The lowest level of the loader's own lines; libraries log warnings and errors only.
    """
    on_terminal = sys.stderr.isatty()
    shared: tuple[structlog.typing.Processor, ...] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal),
        structlog.processors.ExceptionRenderer(_describe_exception),
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    renderer: structlog.typing.Processor = _render_line if on_terminal else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _escape_values, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("loader").setLevel(level)
