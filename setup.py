"""Copies the pages of docs/ into the package, where `cca docs` finds them; setup.cfg has everything else."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDocs(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the pages are beside the package then
            return
        for page in Path("docs").rglob("*.md"):
            target = Path(self.build_lib, "cca_hf", page)
            self.mkpath(str(target.parent))
            self.copy_file(str(page), str(target))


setup(cmdclass={"build_py": BuildWithDocs})
