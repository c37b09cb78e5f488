"""What is in a bundle besides emdenoised, and under which licences: THIRD-PARTY.md, and an SBOM in CycloneDX.

Made from the wheels' own metadata, so neither can name what is not installed. By hand, for the documentation:
`python systemd/third_party.py WHEELS -o docs`.
"""

import argparse
import hashlib
import json
import re
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

PAGE = "THIRD-PARTY.md"
SBOM = "sbom.cdx.json"
OWN = "emdenoised"
_HEAD = """\
# Third-party packages

Everything that an installation of emdenoised holds besides emdenoised itself, with the licence that each package
states. Made by `systemd/third_party.py` from the packages; the same as a CycloneDX SBOM is `sbom.cdx.json` in the
bundle and in the Debian package. The licences' texts are in each package's `dist-info` folder, also those of libraries
that packages bring along in compiled form.

| package | version | licence | home |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel."""

    name: str
    version: str
    licence: str
    """SPDX expression if the package states one, else its own words."""
    is_spdx: bool
    home: str
    sha256: str
    """Hexadecimal, of the wheel."""

    @property
    def purl(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{re.sub(r'[-_.]+', '-', self.name).lower()}@{self.version}"


def read(wheels: Path) -> list[Package]:
    """The packages of all wheels in a folder, by name; emdenoised is among them. Raises ValueError."""
    return sorted((_package(wheel) for wheel in wheels.glob("*.whl")), key=lambda one: one.name.lower())


def write(wheels: Path, out: Path) -> list[Package]:
    """THIRD-PARTY.md and the SBOM of the wheels in a folder; returns the packages."""
    found = read(wheels)
    rows = [f"| {one.name} | {one.version} | {one.licence} | {one.home} |\n" for one in found if one.name != OWN]
    (out / PAGE).write_text(_HEAD + "".join(rows), "utf-8")
    (out / SBOM).write_text(json.dumps(_cyclonedx(found), indent=1) + "\n", "utf-8")
    return found


def _package(wheel: Path) -> Package:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if re.match(r"[^/]+\.dist-info/METADATA$", name)}
        about = PathDistribution(zipfile.Path(archive, f"{folder}/"))
        licence, is_spdx = _licence(about)
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return Package(about.metadata["Name"], about.version, licence, is_spdx, _home(about), sha256)


def _licence(about: Distribution) -> tuple[str, bool]:
    """The licence in one line, and whether it is an SPDX expression. Raises ValueError if none is stated."""
    stated = about.metadata.json
    if expression := stated.get("license_expression"):
        return str(expression), True
    words = [line.rpartition(" :: ")[2] for line in stated.get("classifier", []) if line.startswith("License :: ")]
    named = [word for word in words if word != "OSI Approved"]
    if named:
        return ", ".join(named), False
    if text := str(stated.get("license", "")).strip():
        return text.splitlines()[0].replace("|", "/")[:80], False
    raise ValueError(f"{about.metadata['Name']}: states no licence, so it may not be passed on")


def _home(about: Distribution) -> str:
    stated = about.metadata.json
    pairs = [line.partition(",") for line in stated.get("project_url", [])]
    links = {name.strip().lower(): link.strip() for name, _, link in pairs}
    wanted = next((links[name] for name in ("homepage", "repository", "source", "source code") if name in links), "")
    return str(wanted or stated.get("home_page") or next(iter(links.values()), ""))


def _cyclonedx(packages: list[Package]) -> dict[str, object]:
    def component(one: Package) -> dict[str, object]:
        licence: dict[str, object] = {"expression": one.licence} if one.is_spdx else {"license": {"name": one.licence}}
        return {
            "type": "application" if one.name == OWN else "library",
            "bom-ref": one.purl,
            "name": one.name,
            "version": one.version,
            "purl": one.purl,
            "licenses": [licence],
            "hashes": [{"alg": "SHA-256", "content": one.sha256}],
        }

    own = [component(one) for one in packages if one.name == OWN]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own[0]} if own else {},
        "components": [component(one) for one in packages if one.name != OWN],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of wheels, such as a bundle's")
    parser.add_argument("-o", "--out", type=Path, required=True, help=f"folder for {PAGE} and {SBOM}")
    options = parser.parse_args()
    try:
        print(f"{len(write(options.wheels, options.out))} packages")
    except ValueError as error:
        print(f"third_party: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
