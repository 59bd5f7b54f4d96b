# gsnn on the CPU: docker build -t gsnn . && docker run --rm -v "$PWD:/work" gsnn demo
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip wheel --no-cache-dir --no-deps -w /wheels /src

FROM python:3.12-slim
# For a GPU leave this line out: pip then takes PyTorch with CUDA.
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels && useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["gsnn"]
CMD ["--help"]
