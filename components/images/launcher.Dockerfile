# The image of the stages that start and follow jobs in a cluster: pretrain_distributed, finetune_lora_distributed. No torch:
# the jobs' own pods run the model image.
# Built from the repository's root: make images, or docker build -f components/images/launcher.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS packages
# Where pip finds packages, as in a shell: for a mirror of one's own.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt pyproject.toml ./
# The packages alone first, so that a change of the project's code finds this step done. Without compiled forms: smoke.py
# makes those that are used. Of kfp, as KFP itself installs it in components, nothing but itself: what runs a component
# needs no client of a cluster.
# The versions are those of constraints.txt.
# hadolint ignore=DL3013
RUN touch README.md LICENSE \
 && PIP_CONSTRAINT=/build/constraints.txt pip --python /opt/venv/bin/python install --no-cache-dir --no-compile '.[launcher-image]' \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps --constraint constraints.txt kfp \
 && pip --python /opt/venv/bin/python uninstall --yes aic-ai-poc-gpt
COPY components/images/slim.py ./
RUN python slim.py /opt/venv/lib/python3.*/site-packages

FROM packages AS project
COPY README.md LICENSE ./
COPY modelcore modelcore
COPY components/images/smoke.py /smoke/
# Installs the project, runs its stages, and sets aside what that has added: so the large layer below stays as it is when
# only the project's code has changed.
RUN touch /before \
 && PIP_CONSTRAINT=/build/constraints.txt pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps . \
 && HOME=/tmp /opt/venv/bin/python /smoke/smoke.py launcher \
 && find /opt/venv -newer /before ! -type d > /added.txt \
 && tar --create --file /added.tar --files-from /added.txt \
 && mkdir /added && tar --extract --file /added.tar --directory /added --strip-components 2

FROM ${BASE_IMAGE}
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Nothing is installed in a container that runs, so pip goes, Debian's or Python's own.
RUN rm -rf /usr/bin/pip* /usr/local/bin/pip* /usr/share/python-wheels /usr/lib/python3*/ensurepip /usr/local/lib/python3*/ensurepip \
      /usr/lib/python3/dist-packages/pip* /usr/lib/python3/dist-packages/setuptools* /usr/lib/python3/dist-packages/wheel* \
      /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
      /usr/local/lib/python3*/site-packages/wheel*
COPY --from=packages /opt/venv /opt/venv
COPY --from=project /added /opt/venv
USER 10001:10001
WORKDIR /tmp
# A stage is a program that ends: its exit status tells how it went, and nothing asks the container meanwhile. The check is
# for containers that are kept open (a shell, a debugger): the library can be imported. It costs 30 ms, and seldom.
HEALTHCHECK --interval=5m --timeout=30s CMD ["python", "-c", "import modelcore"]
CMD ["modelcore", "--help"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG CODE=unknown
LABEL org.opencontainers.image.title="aic-ai-poc-gpt-launcher-python" \
      org.opencontainers.image.description="Stages that start and follow jobs in a cluster" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      aic-ai-poc-gpt.code="${CODE}"
