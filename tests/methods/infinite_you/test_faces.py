"""Choosing a face, ArcFace, and the glue around insightface, whose modules are stood in for here."""

import logging
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_flux_ext import FaceEncoder, InsightFaceEncoder
from diffusers_flux_ext.methods.infinite_you.arcface import ArcFaceIRSE50
from diffusers_flux_ext.methods.infinite_you.faces import choose_face


BOXES = [(100, 0, 160, 60), (0, 0, 90, 90), (200, 0, 260, 60)]


@pytest.fixture
def warnings(caplog):
    logger = logging.getLogger("diffusers_flux_ext.methods.infinite_you.faces")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_the_largest_face_or_one_by_its_place(warnings):
    assert choose_face(BOXES) == 1
    assert "3 faces were found" in warnings.text
    assert [choose_face(BOXES, index) for index in range(3)] == [1, 0, 2]


def test_no_warning_about_one_good_face(warnings):
    assert choose_face(BOXES[:1]) == 0
    assert warnings.text == ""


@pytest.mark.parametrize("index", [-1, 3])
def test_a_face_that_is_not_there(index):
    with pytest.raises(ValueError, match=f"`face_index` is {index}, but 3 faces"):
        choose_face(BOXES, index)


def test_no_face():
    with pytest.raises(ValueError, match="No face was found.*at least 48 pixels"):
        choose_face([])


def test_the_interface_needs_encode():
    with pytest.raises(TypeError, match="encode"):
        FaceEncoder()


@pytest.fixture(scope="module")
def arcface():
    torch.manual_seed(0)
    return ArcFaceIRSE50().eval().requires_grad_(False)


class TestArcFace:
    def test_the_published_names_and_sizes(self, arcface):
        shapes = {key: tuple(weight.shape) for key, weight in arcface.state_dict().items()}
        assert shapes["input_layer.0.weight"] == (64, 3, 3, 3)
        assert shapes["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
        assert shapes["body.7.res_layer.3.weight"] == (256, 256, 3, 3)
        assert shapes["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
        assert shapes["output_layer.3.weight"] == (512, 512 * 7 * 7)
        assert shapes["output_layer.4.running_var"] == (512,)
        assert not any(key.startswith(("body.24.", "body.0.shortcut_layer.")) for key in shapes)
        # What facexlib's published file holds: 43.8 million numbers.
        assert sum(weight.numel() for weight in arcface.parameters()) == 43_797_696

    def test_embeddings_are_normalised(self, arcface):
        embeds = arcface(torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1)
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
        assert (embeds[0] - embeds[1]).abs().max() > 1e-3

    def test_files(self, arcface, tmp_path):
        torch.save(arcface.state_dict(), tmp_path / "arcface.pth")
        loaded = ArcFaceIRSE50.from_single_file(tmp_path / "arcface.pth")
        assert all(torch.equal(weight, arcface.state_dict()[key]) for key, weight in loaded.state_dict().items())
        torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="does not hold the weights of ArcFace"):
            ArcFaceIRSE50.from_single_file(tmp_path / "other.pth")


class Detector:
    """Finds the given faces from a detection size downwards."""

    found_at = 320
    boxes = ((10.0, 10.0, 110.0, 120.0),)
    made: list[dict] = []

    def __init__(self, **arguments):
        self.made.append(arguments)

    def prepare(self, ctx_id, det_size):
        self.size = det_size[0]

    def get(self, bgr):
        assert bgr.flags.c_contiguous
        Detector.pixel = bgr[0, 0].tolist()
        if self.size > self.found_at:
            return []
        points = np.arange(10, dtype=np.float32).reshape(5, 2)
        return [{"bbox": np.array(box), "kps": points + number} for number, box in enumerate(self.boxes)]


def norm_crop(bgr, landmark, image_size):
    Detector.landmark = landmark
    return np.full((image_size, image_size, 3), bgr[0, 0], dtype=np.uint8)


class MeanColor(torch.nn.Module):
    def forward(self, crops):
        self.crops = crops
        return crops.mean(dim=(2, 3)).repeat(1, 2)


@pytest.fixture
def insightface(monkeypatch):
    package, app, utils = (types.ModuleType(name) for name in ("insightface", "insightface.app", "insightface.utils"))
    align = types.ModuleType("insightface.utils.face_align")
    app.FaceAnalysis, align.norm_crop = Detector, norm_crop
    for module in (package, app, utils, align):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Detector.made.clear()


class TestInsightFace:
    picture = Image.new("RGB", (200, 150), (255, 128, 0))

    @pytest.mark.parametrize("found_at", [640, 320, 160])
    def test_sizes_are_tried_in_turn(self, insightface, monkeypatch, found_at):
        monkeypatch.setattr(Detector, "found_at", found_at)
        encoder = InsightFaceEncoder(MeanColor(), root="somewhere")
        assert [detector.size for detector in encoder._detectors] == [640, 320, 160]
        assert Detector.made[0]["name"] == "antelopev2"
        assert Detector.made[0]["root"] == "somewhere"
        face = encoder.encode(self.picture)
        assert Detector.pixel == [0, 128, 255]
        assert encoder.arcface.crops.shape == (1, 3, 112, 112)
        expected = torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]).repeat(2)
        torch.testing.assert_close(face.embedding, expected)
        assert face.keypoints.tolist() == np.arange(10).reshape(5, 2).tolist()
        assert face.box == (10.0, 10.0, 110.0, 120.0)
        assert face.embedding.dtype == torch.float32

    def test_one_of_several(self, insightface, monkeypatch):
        monkeypatch.setattr(Detector, "boxes", ((100.0, 0.0, 160.0, 60.0), (0.0, 0.0, 90.0, 90.0)))
        encoder = InsightFaceEncoder(MeanColor())
        assert encoder.encode(self.picture).box[0] == 0.0
        assert encoder.encode(self.picture, 1).box[0] == 100.0
        assert Detector.landmark[0, 0] == 0.0

    def test_no_face(self, insightface, monkeypatch):
        monkeypatch.setattr(Detector, "found_at", 0)
        with pytest.raises(ValueError, match="No face was found"):
            InsightFaceEncoder(MeanColor()).encode(self.picture)

    def test_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "insightface", None)
        with pytest.raises(ImportError, match=r"pip install 'diffusers-flux-ext\[infinite-you\]'"):
            InsightFaceEncoder(MeanColor())
