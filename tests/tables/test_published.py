"""The published numbers in ``tables/*.yaml``, compared with a second transcription of the sources."""

from attnmosaic.tables.published import published_tables

TABLES = {table.key: table for table in published_tables()}


def test_number_of_published_cells() -> None:
    """Table 1 has 16 cells, the weighted averages 90, MNIST 2, and the 2-D types 11."""
    counts = {key: sum(map(len, table.rows.values())) for key, table in TABLES.items()}
    assert counts == {"table1": 16, "table2": 0, "averages": 90, "mnist": 2, "gradients": 11}


def test_columns_of_table_1() -> None:
    """The columns of the stage-wise study's Table 1, from top to bottom."""
    rows = TABLES["table1"].rows.values()
    assert [row["train/accuracy"] for row in rows] == [0.96, 0.94, 0.97, 0.97, 0.99, 0.86, 0.97, 0.97]
    assert [row["test/accuracy"] for row in rows] == [0.81, 0.79, 0.43, 0.79, 0.76, 0.41, 0.82, 0.83]


def test_cells_of_the_weighted_averages() -> None:
    """One row, one column, the diagonal, and the sum of all cells of the weighted-average study's table."""
    rows = [list(row.values()) for row in TABLES["averages"].rows.values()]
    percent = [[round(100 * value) for value in row] for row in rows]
    assert percent[3] == [41, 63, 90, 100, 99, 96, 92, 89, 87, 82]
    assert [row[9] for row in percent] == [60, 63, 73, 82, 85, 87, 91, 92, 92]
    assert [row[i] for i, row in enumerate(percent)] == [52, 100, 100, 100, 100, 99, 100, 100, 100]
    assert sum(map(sum, percent)) == 6959


def test_mnist_accuracies_are_counts_over_all_training_images() -> None:
    row = TABLES["mnist"].rows["mnist/product"]
    # The digit-and-product exercise truncates 92.988 to 92.98.
    assert row["train/digit_accuracy"] == round(55793 / 60000, 4) - 0.0001
    assert row["train/product_accuracy"] == round(54968 / 60000, 4)


def test_ftpt_of_type_1_is_a_fraction_of_3000_mosaics() -> None:
    assert TABLES["gradients"].rows["gradients/type1"]["train/ftpt"] == round(2053 / 3000, 4)


def test_every_table_has_a_source_and_as_many_headings_as_metrics() -> None:
    for table in TABLES.values():
        assert table.source
        assert len(table.columns) == len(table.shown)
        for row in table.rows.values():
            assert row.keys() <= {*table.shown}
