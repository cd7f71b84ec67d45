# Stage `convert` makes the models (TensorFlow), stage `packages` installs what serves, and the image has nothing else.
# Described in docs/deployment.md; built without an engine, and run, by tests/deploy/image.
#
#   docker build -t visionai .
#   docker build -t visionai:gpu --build-arg ONNXRUNTIME=gpu .
#
# To pin the bases, give their digests: --build-arg BUILD_DIGEST=@sha256:... --build-arg RUNTIME_DIGEST=@sha256:...
ARG BUILD_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG BUILD_DIGEST=
# Debian 12's Python 3.11 and C++ library, without shell or package manager. The build image's Python must be the
# same minor version: compiled modules are for one only.
ARG RUNTIME_IMAGE=gcr.io/distroless/python3-debian12:nonroot
ARG RUNTIME_DIGEST=


FROM ${BUILD_IMAGE}${BUILD_DIGEST} AS convert
WORKDIR /src
# TensorFlow's layer depends on these files alone, so that a change of code does not install it again.
COPY pyproject.toml constraints.txt README.md ./
RUN python3 -m venv /venv \
 && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt '.[build]'
COPY conversion conversion
COPY models models
RUN /venv/bin/python -m models convert \
 && mkdir /models \
 && mv models/build/*.onnx models/build/*.onnx.manifest.json /models/


FROM ${BUILD_IMAGE}${BUILD_DIGEST} AS packages
# `cpu`, or `gpu` for CUDA 12 and cuDNN 9, which come from NVIDIA's wheels: the host needs its driver only.
ARG ONNXRUNTIME=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
RUN python3 -m venv /venv \
 && /venv/bin/python -m pip install --no-cache-dir --no-compile -c constraints.txt .
# Both distributions of ONNX Runtime are the same module: one has to go before the other comes.
RUN case "${ONNXRUNTIME}" in \
      cpu) ;; \
      gpu) version=$(sed -n 's/^onnxruntime==//p' constraints.txt) \
        && /venv/bin/python -m pip uninstall --yes onnxruntime \
        && /venv/bin/python -m pip install --no-cache-dir --no-compile -c constraints.txt \
             "onnxruntime-gpu[cuda,cudnn]==${version}" ;; \
      *) echo "ONNXRUNTIME is cpu or gpu, not ${ONNXRUNTIME}" >&2; exit 1 ;; \
    esac
COPY service service
# The page runs the JavaScript client; of the rest of the package it needs nothing.
COPY client/__init__.py client/__init__.py
COPY client/js client/js
# The libraries of the clients' command line go: the image serves, clients are elsewhere. `rich` stays, for `tune`.
# Debian keeps no old versions, so `binutils` cannot be pinned.
# hadolint ignore=DL3008
RUN /venv/bin/python -m pip install --no-cache-dir --no-compile --no-deps --force-reinstall . \
 && /venv/bin/python -m pip uninstall --yes typer pygments pydantic pydantic-core markdown-it-py mdurl \
 && apt-get update && apt-get install --yes --no-install-recommends binutils \
 && rm -rf /var/lib/apt/lists/* \
 && mv /venv/lib/python3.*/site-packages /packages
# What is left out is never imported here: what packages bring for their own tests and for building other software,
# databases that are not supported, ONNX Runtime for programs in C (Python's module has its own), debugging symbols (of
# modules that `auditwheel` has not rewritten: `strip` breaks those). Bytecode is made now: the image's file system is
# read-only when it runs.
WORKDIR /packages
RUN rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth \
 && rm -rf cv2/data onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets \
 && rm -rf numpy/f2py numpy/_core/include numpy/random/_examples \
 && rm -rf sqlalchemy/testing sqlalchemy/dialects/mssql sqlalchemy/dialects/mysql sqlalchemy/dialects/oracle \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete \
 && if [ "${ONNXRUNTIME}" = cpu ]; then rm -f onnxruntime/capi/libonnxruntime.so.*; fi \
 && find uvloop sqlalchemy cryptography -name '*.so' -exec strip {} + \
 && /venv/bin/python -m compileall -q -s /packages -p /packages . \
 && PYTHONPATH=/packages python3 -c 'import service.processes.supervisor, service.tune, sqlalchemy.dialects.postgresql.psycopg2' \
 && mkdir /data


FROM ${RUNTIME_IMAGE}${RUNTIME_DIGEST} AS serve
ARG VERSION=1.0.0
ARG REVISION=unknown
ARG RUNTIME_IMAGE
ARG RUNTIME_DIGEST
LABEL org.opencontainers.image.title="VisionAI" \
      org.opencontainers.image.description="Real-time facial emotion recognition over WebSocket" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${RUNTIME_IMAGE}${RUNTIME_DIGEST}"
COPY --from=packages /packages /packages
COPY --from=convert /models /models
# A new volume takes this folder's owner. What is in it is all that the service writes.
COPY --from=packages --chown=65532:65532 /data /data
ENV PYTHONPATH=/packages \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    MODEL_PATH=/models/modelo_emociones.onnx \
    DATABASE_URL=sqlite:////data/visionai.db \
    JOURNAL_DIR=/data/journal \
    XDG_CACHE_HOME=/data/cache
WORKDIR /data
VOLUME /data
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["/usr/bin/python3", "-m", "service.healthcheck"]
# Exec form: the service is process 1 and gets SIGTERM itself.
ENTRYPOINT ["/usr/bin/python3", "-m", "service"]
