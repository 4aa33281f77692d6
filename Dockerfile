# CPU by default: `--build-arg TORCH_INDEX=...` names an index with CPU wheels of torch; without it, CUDA comes along.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY backend ./backend
COPY sampling ./sampling
RUN python -m venv /opt/scanqueue && \
    /opt/scanqueue/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

FROM python:3.11-slim
COPY --from=build /opt/scanqueue /opt/scanqueue
RUN useradd --uid 10001 --user-group --no-create-home scanqueue && install -d -o 10001 -g 10001 /data /weights
ENV PATH=/opt/scanqueue/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["scanqueue"]
CMD ["serve"]
