# Pre-training on a server with NVIDIA GPUs.
#
#   docker build --tag ct_mr_sparse_mim_pretraining .
#   docker run --rm --gpus all --shm-size 8g --volume /path/to/volumes:/bundle/data/volumes:ro \
#       --volume mim_runs:/bundle/runs --volume mim_cache:/bundle/.cache --volume mim_models:/bundle/models \
#       ct_mr_sparse_mim_pretraining --config_file "['configs/train.yaml','configs/preset_prod.yaml']"
#
# What follows the image's name goes to `python -m monai.bundle run`. Several GPUs: --entrypoint torchrun, and then
# --standalone --nproc_per_node=4 -m monai.bundle run --config_file "['configs/train.yaml','configs/multi_gpu_train.yaml']"
#
# In the image: Debian 12 with Python 3.11, the packages of requirements.txt at the versions of constraints.txt, and the
# bundle's code and configs. On Linux x86_64, PyPI's torch brings CUDA's libraries as packages, so the base image needs none.
# Not in it: the NVIDIA driver and container toolkit, which the host has; a compiler and MinkowskiEngine, which only
# the executor `minkowski` needs; volumes, weights, runs and tests.
FROM python:3.11-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/bundle \
    PIP_NO_CACHE_DIR=1

# libgomp1: the OpenMP that torch and ITK link; the slim image has none
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /bundle

# before the code, so that a change of the code does not install everything again
COPY requirements.txt constraints.txt ./
COPY scripts/locked scripts/locked
# wheels only, and each with a known sha256 but torch, whose files differ by index
RUN python -m pip install --only-binary :all: --no-deps --require-hashes --requirement scripts/locked/requirements.txt
RUN python -m pip install --only-binary :all: --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md pyproject.toml ./
COPY bundle bundle
COPY configs configs
COPY scripts scripts

# not root; the folders belong to this user, and so do new volumes mounted there
RUN useradd --uid 1000 --create-home trainer \
    && mkdir -p data/volumes runs .cache models \
    && chown -R trainer:trainer data runs .cache models
USER trainer
VOLUME ["/bundle/data", "/bundle/runs", "/bundle/.cache", "/bundle/models"]

ENTRYPOINT ["python", "-m", "monai.bundle", "run"]
CMD ["training", "--config_file", "configs/train.yaml"]
