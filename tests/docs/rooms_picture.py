"""Draws the rooms of the package into docs/architecture.md; run it as a module to write them."""

from pathlib import Path

from tests.test_layers import ALLOWED_TO_ALL, EVERYTHING, MAY_IMPORT

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
START, END = "<!-- rooms: written by tests/docs/rooms_picture.py -->", "<!-- end of rooms -->"
ROOMS = {
    room: set(MAY_IMPORT) - ALLOWED_TO_ALL - {room} if targets is EVERYTHING else set(targets)
    for room, targets in MAY_IMPORT.items()
    if room not in ALLOWED_TO_ALL
}


def floor(room):
    """0 for a room that imports no other; else one above the highest room that it imports."""
    return 1 + max((floor(target) for target in ROOMS[room]), default=-1)


def below(room):
    """Every room that a room imports, or that those import."""
    return ROOMS[room].union(*(below(target) for target in ROOMS[room]))


def arrows(room):
    """The rooms that a room imports, without those that are reached through another of them."""
    return sorted(ROOMS[room] - set().union(*(below(target) for target in ROOMS[room])))


def picture():
    floors = sorted({floor(room) for room in ROOMS}, reverse=True)
    lines = ["| floor | rooms, and the highest rooms that each imports |", "|---|---|"]
    for number in floors:
        rooms = [room for room in sorted(ROOMS) if floor(room) == number]
        cells = [f"`{room}`" + (f" → {', '.join(arrows(room))}" * bool(number)) for room in rooms]
        lines.append(f"| {number} | {'<br>'.join(cells)} |")
    return "\n".join(lines)


def write(page):
    before, rest = page.split(START)
    return f"{before}{START}\n\n{picture()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
