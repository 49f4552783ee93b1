# Both stages use one base image, so that the environment built in the first stage runs in the second.
# The tag can move; for a reproducible build, set the base by digest: --build-arg PYTHON_IMAGE=...@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
# The environment contains no pip: the pip of the base image installs into it.
RUN python -m venv --without-pip /opt/regmirror
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY regmirror regmirror
RUN PIP_CONSTRAINT=requirements/dev.lock PIP_BUILD_CONSTRAINT=requirements/dev.lock \
    pip --python /opt/regmirror/bin/python install --no-cache-dir .

FROM ${PYTHON_IMAGE}
# Remove pip, and ensurepip, which could install pip: a server needs neither.
RUN python -c "import importlib.util, pathlib, shutil; \
homes = [pathlib.Path(spec.origin).parent for spec in map(importlib.util.find_spec, ('pip', 'ensurepip')) if spec]; \
[shutil.rmtree(path) for home in homes for path in (home, *home.parent.glob(home.name + '-*.dist-info'))]" \
    && rm -f /usr/local/bin/pip /usr/local/bin/pip3*
COPY --from=build /opt/regmirror /opt/regmirror
RUN install -d -o 10001 -g 10001 -m 0750 /var/lib/regmirror
ENV PATH=/opt/regmirror/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    REGMIRROR_STORAGE__PATH=/var/lib/regmirror
VOLUME /var/lib/regmirror
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
# Requests /healthz on the default port over HTTP; with another port or with TLS, pass --health-cmd to `docker run`.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 5000, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["regmirror"]
CMD ["serve"]
# Last, because the arguments change with every build and would invalidate the cache of later layers.
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="regmirror" \
      org.opencontainers.image.description="A pull-through cache for container registries" \
      org.opencontainers.image.source="https://github.com/regmirror/regmirror" \
      org.opencontainers.image.documentation="https://github.com/regmirror/regmirror/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
