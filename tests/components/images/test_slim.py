"""What is taken out of an image's packages, and what stays."""

from components.images.slim import slim


def fill(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)


def left(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_tests_headers_and_other_services_go_and_the_packages_stay(tmp_path):
    kept = ["pandas/core.py", "torch/testing/a.py", "botocore/data/s3/v.json", "botocore/data/endpoints.json", "a/b.so"]
    gone = ["pandas/tests/deep/test_a.py", "botocore/data/ec2/v.json", "torch/test/a.py", "numpy/a.pxd"]
    fill(tmp_path, *kept, *gone)
    assert slim(tmp_path) == 10 * len(gone)
    assert left(tmp_path) == set(kept)


def test_headers_of_torch_stay_where_it_is_built_for_cuda(tmp_path):
    fill(tmp_path, "torch/include/a.h", "torch/lib/libtorch_cuda.so")
    assert slim(tmp_path) == 0
    (tmp_path / "torch/lib/libtorch_cuda.so").unlink()
    assert slim(tmp_path) == 10


def test_the_hubs_client_stays_where_transformers_is(tmp_path):
    fill(tmp_path, "huggingface_hub/a.py", "transformers/a.py")
    assert slim(tmp_path) == 0
    (tmp_path / "transformers/a.py").unlink()
    (tmp_path / "transformers").rmdir()
    assert slim(tmp_path) == 10


def test_a_link_is_removed_and_what_it_points_to_is_left(tmp_path):
    fill(tmp_path, "else/where.py")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "tests").symlink_to(tmp_path / "else")
    slim(tmp_path / "packages")
    assert left(tmp_path) == {"else/where.py"}
    assert not (tmp_path / "packages" / "tests").is_symlink()
