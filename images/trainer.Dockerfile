# The trainer: every stage of a pipeline, and the inference server. Build it from the project's root:
#   docker build -t nanochat-trainer:dev -f images/trainer.Dockerfile .
# On a machine with NVIDIA GPUs the nodes need the CUDA build of PyTorch: --build-arg TORCH_INDEX= takes it.
FROM python:3.11-slim-bookworm AS trainer

ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY images/install-torch.sh /tmp/
RUN sh /tmp/install-torch.sh python "$TORCH_VERSION" "$TORCH_INDEX"

# The dependencies, by the project's own list: they change more rarely than the code.
COPY pyproject.toml /src/
WORKDIR /src
RUN mkdir nanochat operators tasks && touch README.md nanochat/__init__.py operators/__init__.py tasks/__init__.py \
    && pip install --no-cache-dir --quiet ".[train,serve]" && pip uninstall --quiet --yes nanochat

ARG COMMIT=
ENV NANOCHAT_COMMIT=$COMMIT PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/nanochat
RUN useradd --uid 1000 --create-home nanochat
COPY tasks /opt/nanochat/tasks
COPY nanochat /opt/nanochat/nanochat
RUN python -m compileall -q /opt/nanochat
USER 1000
WORKDIR /tmp
CMD ["python", "-m", "nanochat.cli.main", "--help"]
