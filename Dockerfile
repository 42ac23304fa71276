# An image that runs `aalp`; docs/docker.md tells how. The wheel is built in a first stage, the last one has no build tools.
FROM python:3.12-slim AS build
WORKDIR /src
RUN pip install --no-cache-dir build
COPY . .
# Without .git in the context the version has to be given: --build-arg VERSION=0.1.0
ARG VERSION=""
RUN if [ -n "$VERSION" ]; then export SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION"; fi && python -m build --wheel --outdir /dist

FROM python:3.12-slim
ARG EXTRA_INDEX=""
COPY --from=build /dist/*.whl /src/constraints.txt /wheels/
RUN pip install --no-cache-dir ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} --constraint /wheels/constraints.txt /wheels/*.whl \
    && rm -r /wheels \
    && useradd --create-home aalp && mkdir /data && chown aalp /data
USER aalp
WORKDIR /data
ENTRYPOINT ["aalp"]
CMD ["--help"]
