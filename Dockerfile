# The image of the server and the workers. By default it contains the CPU build of torch. An empty --build-arg
# TORCH_BACKEND= selects the build from the package index, which includes CUDA; any backend name that
# `uv pip install --torch-backend` accepts works. EXTRAS names extras of pyproject.toml, separated by spaces: sam is the
# library of Segment Anything.
FROM python:3.11-slim AS build
ARG TORCH_BACKEND=cpu
ARG EXTRAS=
ENV UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY constraints.txt pyproject.toml ./
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir -c constraints.txt uv
# Left out: what label-studio-sdk needs only for its exports and converters, which we do not import; hf-xet, which
# downloads; setuptools, with which torch compiles; then files that no program loads: test suites (numpy.testing imports
# a file of numpy's), static libraries, headers of torch, of plotly all but the script that the page needs, and of
# fontTools all but the names of glyphs: only PDF and PostScript need the rest. gdcm's libraries are there under three
# names each; two become links. Licences and all that is CUDA's stay.
RUN printf '%s\n' appdirs datamodel-code-generator doclang hf-xet ijson jsf jsonschema nltk pandas requests-mock \
        setuptools ujson watchfiles xmljson > excludes.txt && \
    python -m venv --without-pip /opt/scanqueue && \
    /opt/uv/bin/uv pip install --python /opt/scanqueue/bin/python -c constraints.txt --excludes excludes.txt \
        ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} \
        -r pyproject.toml ${EXTRAS:+$(printf ' --extra %s' $EXTRAS)} && \
    cd /opt/scanqueue/lib/python3.11/site-packages && \
    find . -depth -type d -name tests ! -path './*.dist-info/*' ! -path './numpy/_core/tests' -exec rm -rf {} + && \
    find numpy/_core/tests -type f ! -name '_natype*' -delete && \
    find . -name '*.a' ! -path './nvidia/*' ! -path './triton/*' -delete && \
    find plotly -type f ! -path plotly/__init__.py ! -name plotly.min.js -delete && \
    find fontTools -mindepth 1 -maxdepth 1 -type d ! -name misc ! -name __pycache__ -exec rm -r {} + && \
    rm -r torch/include joblib/test tornado/test fontTools/misc/*.so && \
    for library in _gdcm/lib*.so; do for name in "$library".*; do \
        ! cmp -s "$library" "$name" || ln -sf "${library##*/}" "$name" || exit; done; done

FROM build AS package
COPY README.md LICENSE ./
COPY backend ./backend
COPY sampling ./sampling
RUN /opt/uv/bin/uv pip install --python /opt/scanqueue/bin/python --prefix /opt/package --no-deps .

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home scanqueue && install -d -o 10001 -g 10001 /data /weights
# two layers: an upgrade that keeps the dependencies rebuilds and transfers only the second, of a few megabytes
COPY --from=build /opt/scanqueue /opt/scanqueue
COPY --from=package /opt/package /opt/scanqueue
ENV PATH=/opt/scanqueue/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 SCANQUEUE_DATA_DIR=/data
USER 10001:10001
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=10s --retries=12 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9090/health', timeout=5)"]
ENTRYPOINT ["scanqueue"]
CMD ["serve"]
