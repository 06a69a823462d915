# The image of drivers and executors of Spark applications, in which validate_data and tokenize_corpus run on a cluster: the
# data image, and beside its packages Spark and a Java.
# Built from the repository's root by make images, or, where there is a data image, by
# docker build --build-arg BUILT_ON=aic-ai-poc-gpt-data-python:VERSION -f components/images/spark.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BUILT_ON=aic-ai-poc-gpt-data-python:unknown

FROM ${BASE_IMAGE} AS packages
# Where pip finds packages, as in a shell: for a mirror of one's own.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY constraints.txt ./
# What the extra `spark` has that the data image has not. Without compiled forms: smoke.py makes those that are used.
# The versions are those of constraints.txt.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --no-compile --no-deps --target /packages --constraint constraints.txt \
      py3langid py4j pyspark
COPY components/images/slim.py ./
RUN python slim.py /packages

FROM ${BUILT_ON} AS java
# hadolint ignore=DL3002
USER 0:0
# Debian's Java, in the version of the release; its packages want a folder that slim images lack. And a name for the user:
# Hadoop's library, which opens files for Spark, fails without one.
# hadolint ignore=DL3008
RUN mkdir -p /usr/share/man/man1 \
 && apt-get update && apt-get install --yes --no-install-recommends default-jre-headless \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 spark \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin spark

FROM java AS project
COPY --from=packages /packages /opt/packages
COPY components/images/smoke.py /smoke/
# Has Python look there too, gives the program of Spark's drivers a name that no version changes, runs the stages on Spark,
# and sets aside what that has added.
RUN touch /before \
 && packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
 && echo /opt/packages > "$packages/spark.pth" \
 && ln -s "$packages/modelcore/cluster/job_process.py" /opt/venv/job_process.py \
 && PYTHONDONTWRITEBYTECODE='' python /smoke/smoke.py spark \
 && find /opt -newer /before ! -type d > /added.txt \
 && tar --create --file /added.tar --files-from /added.txt \
 && mkdir /added && tar --extract --file /added.tar --directory /added --strip-components 1

FROM java
COPY --from=packages /packages /opt/packages
COPY --from=project /added /opt
USER 10001:10001
ENTRYPOINT ["python", "-m", "modelcore.spark.pod"]
CMD ["modelcore", "--help"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG CODE=unknown
LABEL org.opencontainers.image.title="aic-ai-poc-gpt-spark-python" \
      org.opencontainers.image.description="Drivers and executors of Spark applications that validate and tokenize text" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      aic-ai-poc-gpt.code="${CODE}"
