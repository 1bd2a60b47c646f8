"""Write docs/reference: configuration keys, commands and the Python interface. `make reference` runs it."""

from pathlib import Path

from generator import pages


def main() -> None:
    """Write each page whose text has changed, and name it."""
    folder = Path(__file__).parent / "reference"
    folder.mkdir(exist_ok=True)
    for name, text in pages.written().items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
