"""Mutants of the store: the order of a commit, what survives a kill, who may write."""

from tests.mutants.base import within

STORE = "tests/store/test_rows.py"
COMMIT = "tests/store/test_commit.py"
OBJECTS = "tests/store/test_objects.py"
LATE = f"{OBJECTS}::test_a_writer_that_is_late_puts_nothing"
RACES = "tests/store/test_spool_races.py"
TAKEOVERS = "tests/store/test_takeovers.py"
SHARED = "tests/store/test_shared_chunks.py"
RAGGED = "tests/store/test_ragged.py"
KILLS = "tests/recording/test_kills.py"
CHILDREN = f"{KILLS}::test_children_of_a_killed_training_do_not_hold_its_store"

writing = within("store/writing.py", COMMIT, STORE)
growing = within("store/growing.py", COMMIT, STORE)
files = within("store/files.py", COMMIT, STORE)
spool = within(
    "store/spool.py",
    LATE,
    f"{OBJECTS}::test_another_run_in_its_place_takes_nothing_of_the_old_ones_rows",
)
folder = within("store/spool_folder.py", RACES)

MUTANTS = (
    # a row is committed once all of it is written
    writing(
        "            for index, row in enumerate(rows, start):\n",
        "            self._commit(lengthened(documents, prefix, start + len(rows), items))\n"
        "            for index, row in enumerate(rows, start):\n",
    ),
    writing(
        "            for name, values in data.items():\n", "            for name in ():\n", RAGGED
    ),
    writing("        sweep(self.path, self.documents)\n", ""),
    growing("(first - chunk * rows) * values[0].nbytes", "first * values[0].nbytes"),
    growing("            check_size(file, nbytes)\n", "            pass\n", SHARED),
    growing('"r+b", buffering=0', '"w+b", buffering=0', SHARED),
    writing("        self._orders.pop(prefix, None)\n", ""),
    writing("            self.documents = self._committed()  # an", "            pass  # an"),
    writing("check_order(last, (segment, step, micro, point))", "pass"),
    files('partial = path.with_name(path.name + ".partial")', "partial = path"),
    files("        partial.unlink(missing_ok=True)\n        raise", "        raise"),
    files("        path.unlink(missing_ok=True)\n        raise", "        raise"),
    files("view = view[file.write(view) :]", "view = view[max(file.write(view), len(view)) :]"),
    files("fcntl.LOCK_EX | (0 if wait", "fcntl.LOCK_SH | (0 if wait"),
    files("os.register_at_fork(after_in_child=_let_go)", "pass", CHILDREN),
    # in an object store only the last who took over writes
    spool("self._check_ours() if self._begun else", "None if self._begun else"),
    spool("        check_run(self._store, self._root)\n", "", RACES),
    spool("        if raw != self._trying:", "        if False:", LATE, TAKEOVERS),
    folder("    check_run(place, root)\n    folder, run", "    folder, run"),
    folder("    if stored != run_of(root):\n", "    if stored is None:\n"),
    folder('if not any(child.name.startswith("worker_")', 'if any(child.name.startswith("x")'),
)
