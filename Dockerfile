# docker build -t culux . && docker run --rm --gpus all culux
# Without a GPU: docker build --build-arg BASE=docker.io/library/debian:bookworm --build-arg EXTRA= -t culux .
ARG BASE=docker.io/nvidia/cuda:12.9.1-runtime-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}

# The base brings CUDA's libraries, so CuPy comes without them. Empty: no CuPy.
ARG EXTRA=cuda12-local

# The versions of Debian's and Ubuntu's Python are the base's to choose.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --shell /bin/sh --uid 10001 culux

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

COPY pyproject.toml README.md LICENSE /opt/culux/
COPY culux /opt/culux/culux
RUN pip install --no-cache-dir "/opt/culux[examples${EXTRA:+,${EXTRA}}]"

# The demo writes its checkpoint and its picture here.
USER 10001
WORKDIR /home/culux
COPY --chown=10001:10001 examples examples
CMD ["python", "examples/digits.py"]
