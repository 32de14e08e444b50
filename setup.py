"""Installs the packages dolg and revisitop; the commands stay in tools/."""
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()

setup(
    name="dolg",
    version="0.1.0",
    description="Instance-level image retrieval: DOLG and its kin, trained, extracted, scored",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["dolg", "dolg.*", "revisitop", "revisitop.*"]),
    package_data={"dolg.report": ["*.j2", "*.css", "script/*.js"], "dolg.serve": ["assets/*"]},
    install_requires=[line for line in LINES if line and not line.startswith(("-", "#"))],
    extras_require={"test": ["pytest>=8", "pytest-xdist>=3", "playwright>=1.49", "nbclient>=0.10",
                             "ipykernel>=6"],
                    "pml": ["pytorch-metric-learning>=2.0"], "formats": ["h5py>=3", "protobuf>=4"],
                    "maps": ["scikit-learn>=1.5", "umap-learn>=0.5"],
                    "export": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]},
)
