# An image of the loader: the wheel in an environment of its own. Its user owns only the data folder.

FROM python:3.13.9-slim-trixie AS build

COPY constraints.txt /source/
RUN python -m venv /opt/loader \
    && /opt/loader/bin/pip install --no-cache-dir --constraint /source/constraints.txt --upgrade pip

COPY pyproject.toml README.md LICENSE CHANGELOG.md /source/
COPY loader /source/loader
COPY migrations /source/migrations
COPY dbt_project /source/dbt_project
RUN /opt/loader/bin/pip install --no-cache-dir \
        --constraint /source/constraints.txt --build-constraint /source/constraints.txt /source \
    && /opt/loader/bin/pip uninstall --yes pip

FROM python:3.13.9-slim-trixie

RUN useradd --uid 10001 --create-home --home-dir /var/lib/loader --shell /usr/sbin/nologin loader
COPY --from=build /opt/loader /opt/loader

ENV PATH=/opt/loader/bin:$PATH \
    LOADER_HOME=/var/lib/loader \
    PYTHONUNBUFFERED=1
USER loader
VOLUME /var/lib/loader
EXPOSE 8080
# On SIGTERM the loader finishes the work under way, then ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["loader"]
CMD ["up", "--host", "0.0.0.0"]
