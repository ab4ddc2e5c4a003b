"""Packaging. The bounds are versions that were installed and tested; widen them together with a run of the tests."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "ado_megatron" / "__init__.py").read_text()).group(1)
# For users without a clone: data of `ado-megatron patch`, and the templates that `ado-megatron doctor` points to.
BESIDE = {"ado_megatron.patches": "patches", "ado_megatron.launch": "launch"}

setup(
    name="ado-megatron",
    version=VERSION,
    description=(
        "Adaptive data mixing for Megatron: the blend of domains follows scaling laws fitted to the run's own losses"
    ),
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "CHANGELOG.md"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["ado_megatron", "ado_megatron.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "ado_megatron": ["py.typed", "*.md", "*/*.md", "report/templates/*"],
        "ado_megatron.patches": ["*.json", "*.md"],
        "ado_megatron.launch": [
            "README.md", "Dockerfile", "hostfile", "ds_config.json", "env.sh", "job.sh", "torchrun.sh", "slurm.sbatch",
            "signal_ranks.sh", "deepspeed_hostfile.sh", "deepspeed_per_node.sh", "cpu_smoke.sh",
        ],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "numpy>=2.0,<2.5",
        "scipy>=1.13,<1.18",
        # Exactly this one. 0.18.4, 0.18.9 and 0.19.0 train two pipeline stages silently wrong (gradient norm 0.45 to
        # 0.81 of the right one); 0.16.9 and 0.17.6 report a gradient norm too high by the accumulation steps. 0.19.4,
        # 0.19.7 and 0.19.8 were measured right. The pin moves only with the test of PP2 against one process.
        "deepspeed==0.19.8",
        # trainer/ is written against its dataset and layer interfaces. 0.16.1 is the last release that runs on Python
        # 3.10 and 3.11; 0.17 and later need 3.12. tests/matrix.sh tries each Python with the newest that it allows.
        "megatron-core==0.16.1; python_version < '3.12'",
        "megatron-core>=0.16.1,<0.20; python_version >= '3.12'",
        # NVIDIA's apex is never required: the `apex` of the public package index is an unrelated web toolkit.
        # `ado-megatron doctor` tells them apart.
        "sentencepiece>=0.2.0,<0.3",
        "tqdm>=4.66,<5",
        "orjson>=3.10,<4",  # numpy arrays to JSON, at a hundredth of the standard library's time
        "rich>=13.0,<16",
        "jinja2>=3.1,<4",
        "PyYAML>=6.0,<7",
        "pybind11>=2.12,<4",  # megatron-core compiles its index helpers with it where its wheel has none
        "setuptools>=70,<81",  # torch's extension builder still imports it
        "zstandard>=0.22,<0.26",
        "tensorboard>=2.16,<3",
    ],
    extras_require={
        "fast": ["numba>=0.68,<0.69"],  # compiles the rows of moving weights; wheels for Python 3.10 to 3.13
        "report": ["matplotlib>=3.10,<3.12", "plotly>=6.0,<8"],
        "wandb": ["wandb>=0.31,<0.32"],
        "mlflow": ["mlflow>=3.1,<4"],
        "prometheus": ["prometheus_client>=0.20,<1"],
        "tokenizers": ["tokenizers>=0.20.3,<0.24"],
        "test": [
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "hypothesis>=6.100,<7",
            "ruff>=0.6,<0.18",
            "mypy>=1.13,<3",
            "numba>=0.68,<0.69",
            "matplotlib>=3.10,<3.12",
            "plotly>=6.0,<8",
            "selenium>=4.40,<5",  # the report in a browser, where there is one
        ],
    },
    entry_points={"console_scripts": ["ado-megatron = ado_megatron.cli:main"]},
)
