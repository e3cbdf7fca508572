# The controller, without PyTorch. Build it from the project's root:
#   docker build -t nanochat-operator:dev -f images/operator.Dockerfile .
FROM python:3.11-slim-bookworm

COPY pyproject.toml /src/
WORKDIR /src
RUN mkdir nanochat operators tasks && touch README.md nanochat/__init__.py operators/__init__.py tasks/__init__.py \
    && pip install --no-cache-dir --quiet ".[operator]" && pip uninstall --quiet --yes nanochat

ARG COMMIT=
ENV NANOCHAT_COMMIT=$COMMIT PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/nanochat
RUN useradd --uid 1000 --create-home nanochat
COPY tasks /opt/nanochat/tasks
COPY nanochat /opt/nanochat/nanochat
COPY operators /opt/nanochat/operators
RUN python -m compileall -q /opt/nanochat
USER 1000
WORKDIR /tmp
CMD ["python", "-m", "operators.main", "--config", "/etc/nanochat/config.yaml"]
