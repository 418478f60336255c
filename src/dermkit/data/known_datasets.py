"""The table of published data sets: counts, ids, licence, citation, known defects and published results.

`dermkit.data.identify` recognises data sets with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ISIC_ARCHIVE = "ISIC Archive"
"""The origin of most images below: a test on another set from it is not independent of clinics and cameras."""

ImageCounts = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """A published data set.

    counts: given split -> class name -> number of images ("" = no split). split_sizes: given split -> number of images,
    if the numbers per class are not published. other_counts: class name -> number of images, with other labels of the
    same images. file_pattern: regular expression of file names without suffix; file_name_is_proof: a matching file
    name is enough to assign an image to this set. isic_ranges: first and last number of ISIC ids that all belong to it.
    lesion_id_pattern, patient_id_pattern: of its ids ("" = the set has none); lesion_id_is_proof: a matching lesion id
    is enough too. contained_keys: sets of which it contains all images. name_pattern: of names that people give it, in
    lower case without separators. archive: the origin of its images ("" = its own). files_sha256: `content_sha256` of
    the copy that the numbers in `defects` were measured on.
    """

    key: str
    title: str
    counts: Mapping[str, ImageCounts] = field(hash=False)
    split_sizes: ImageCounts = field(default_factory=dict, hash=False)
    other_counts: tuple[ImageCounts, ...] = field(default=(), hash=False)
    file_pattern: str
    file_name_is_proof: bool = False
    isic_ranges: tuple[tuple[int, int], ...] = ()
    lesion_id_pattern: str = ""
    patient_id_pattern: str = ""
    lesion_id_is_proof: bool = False
    contained_keys: tuple[str, ...] = ()
    name_pattern: str
    archive: str = ISIC_ARCHIVE
    licence: str
    attribution: str
    citation: str
    defects: tuple[str, ...]
    published_results: tuple[str, ...] = ()
    files_sha256: str = ""

    @property
    def n_images(self) -> int:
        """The number of images as published."""
        return sum(self.split_sizes.values()) or sum(self.class_counts.values())

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images per class over all splits."""
        return sum_counts(count for classes in self.counts.values() for count in classes.items())


def sum_counts(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return name -> sum of its numbers."""
    totals: dict[str, int] = {}
    for name, n in counts:
        totals[name] = totals.get(name, 0) + n
    return totals


def _counts_by_split(**splits: ImageCounts) -> Mapping[str, ImageCounts]:
    return MappingProxyType({split: MappingProxyType(dict(classes)) for split, classes in splits.items()})


def _counts_without_split(classes: ImageCounts) -> Mapping[str, ImageCounts]:
    return MappingProxyType({"": MappingProxyType(dict(classes))})


def _ham_counts(*counts: int) -> dict[str, int]:
    """Return images per class in the order that DermaMNIST numbers the classes of HAM10000."""
    return dict(zip(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), counts, strict=True))


_ISIC9_CLASSES = (
    "actinic keratosis", "basal cell carcinoma", "dermatofibroma", "melanoma", "nevus", "pigmented benign keratosis",
    "seborrheic keratosis", "squamous cell carcinoma", "vascular lesion",
)  # fmt: skip
_HAM_COUNTS = _ham_counts(327, 514, 1099, 115, 1113, 6705, 142)
_HAM_LESION_PATTERN = r"HAM_\d{7}"
_ISIC_FILE_PATTERN = r"ISIC_\d{7}(_downsampled)?"
_MEDMNIST_FILE_PATTERN = r"((train|val|test)_?)?\d+(_\d+)?"

_MIXED_LICENCE = "CC0, CC BY or CC BY-NC, image by image (see the ISIC Archive)"
_CHALLENGE_LICENCE = "CC BY-NC 4.0"
_HAM_LICENCE = "CC BY-NC 4.0 or CC BY-NC-SA 4.0 (sources differ)"
_ARCHIVE_ATTRIBUTION = "The ISIC Archive and its contributors"
_HAM_ATTRIBUTION = "Tschandl, Rosendahl and Kittler, HAM10000 (2018)"
_HAM_CITATION = (
    "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, a large collection of multi-source "
    "dermatoscopic images of common pigmented skin lesions. Scientific Data 5, 180161 (2018). "
    "doi:10.1038/sdata.2018.161"
)
_AKIEC_DEFECT = "akiec joins actinic keratosis and squamous cell carcinoma in situ; it counts as indeterminate."
_DX_TYPE_DEFECT = "dx_type (how the diagnosis was confirmed) gives the label away: it is left out of the manifest."

# Numbers of duplicates were measured with `pixel_sha256` on public copies resized to 180, 160 and 200 pixels. ISIC ids
# 24306 to 34320 are exactly the 10,015 images of HAM10000, by its table. Numbers per class are measured for these three
# sets and published ones for the others; a test compares their sums with the published numbers of images.
KNOWN_DATASETS = (
    KnownDataset(
        key="isic9",
        title="Skin cancer, nine classes (ISIC)",
        counts=_counts_by_split(
            train=dict(zip(_ISIC9_CLASSES, (114, 376, 95, 438, 357, 462, 77, 181, 139), strict=True)),
            test=dict(zip(_ISIC9_CLASSES, (16, 16, 16, 16, 16, 16, 3, 16, 3), strict=True)),
        ),
        file_pattern=_ISIC_FILE_PATTERN,
        name_pattern=r"isic9(?!\d)|(skincancer)?(9|nine)classes(isic)?|skincancer9",
        licence=_MIXED_LICENCE,
        attribution=_ARCHIVE_ATTRIBUTION,
        citation="International Skin Imaging Collaboration: ISIC Archive, a selection of nine classes in two folders.",
        defects=(
            "155 images stand in two classes each (310 files, identical pixels): 78 are both melanoma and seborrheic "
            "keratosis (which has 80 images), 77 are both actinic keratosis and nevus.",
            "18 of the 118 test images have an identical copy in Train, each under the other label.",
            "No lesion ids. By the ids of HAM10000, which 1,437 of these images belong to, 39 test images show a "
            "lesion that Train shows too.",
            "The test folder is small and not stratified: seborrheic keratosis and vascular lesion have 3 images.",
            "Archive follows class: by their ids none of the 454 melanomas is of HAM10000, and all 392 basal cell "
            "carcinomas, 478 pigmented benign keratoses and 142 vascular lesions are.",
        ),
        published_results=(
            "ResNet50, frozen, 128 pixels: test accuracy 46.61 % (55 of 118; 95 % interval 37.9 to 55.6 %).",
        ),
        files_sha256="593dc4f1eed45b4c645439bdf7822fee6c782ed9a405e2eb1518677c79e6d9d6",
    ),
    KnownDataset(
        key="melanoma10k",
        title="Melanoma skin cancer, 10,000 images",
        counts=_counts_by_split(train={"benign": 5000, "malignant": 4605}, test={"benign": 500, "malignant": 500}),
        file_pattern=r"melanoma_\d+",
        name_pattern=r"melanoma(skincancer)?(dataset)?(of)?(10000|10k)(images)?",
        licence=_MIXED_LICENCE,
        attribution=_ARCHIVE_ATTRIBUTION,
        citation="Melanoma Skin Cancer Dataset of 10000 Images; pictures from the ISIC Archive.",
        defects=(
            "The classes can be told apart without looking at the lesion: a rule from mean colour alone reaches 86 % "
            "accuracy and AUROC 0.95.",
            "22 images occur twice (44 files, identical pixels); 7 of these pairs have one copy in train, one in test.",
            "No lesion, patient or archive ids: photographs of one lesion cannot be kept together.",
            "All 1,113 melanomas of HAM10000 are among its malignant training images, but one nevus of it among the "
            "benign; 240 images of the nine-class set are there too: a model made on it has seen them.",
        ),
        published_results=(
            "Public convolutional nets: accuracy 88 to 93 %, beside 86 % of the rule from mean colour.",
        ),
        files_sha256="7e920719aae6710a389b87b2a5ca16504f29e0535a11970c1bb3f001f2c2ba03",
    ),
    KnownDataset(
        key="ham10000",
        title="HAM10000",
        counts=_counts_without_split(_HAM_COUNTS),
        file_pattern=r"ISIC_00(2[4-9]|3[0-4])\d{3}(_downsampled)?",
        isic_ranges=((24306, 34320),),
        lesion_id_pattern=_HAM_LESION_PATTERN,
        lesion_id_is_proof=True,
        name_pattern=r"ham10000|ham10k|skincancermnist",
        licence=_HAM_LICENCE,
        attribution=_HAM_ATTRIBUTION,
        citation=_HAM_CITATION,
        defects=(
            "10,015 images of 7,470 lesions: a split that ignores lesions leaks 38.7 % of what it holds "
            "back, 68.3 % of its melanomas.",
            _DX_TYPE_DEFECT,
            _AKIEC_DEFECT,
            "Age 0 is given for 39 images, and kept as published.",
        ),
        published_results=(
            "Split by lesion, the honest range of balanced accuracy is .70 to .80; an accuracy above .92 should "
            "trigger a search for leaks.",
        ),
        files_sha256="29b4ae49d1253667a6b2265d1de6b09ddd606380a94097b955715f282d818b16",
    ),
    KnownDataset(
        key="isic2018",
        title="ISIC 2018, task 3",
        counts=_counts_by_split(
            train=_HAM_COUNTS,
            validation=_ham_counts(8, 15, 22, 1, 21, 123, 3),
            test=_ham_counts(43, 93, 217, 44, 171, 909, 35),
        ),
        file_pattern=_ISIC_FILE_PATTERN,
        isic_ranges=((24306, 36064),),
        lesion_id_pattern=_HAM_LESION_PATTERN,
        contained_keys=("ham10000",),
        name_pattern=r"isic(challenge)?2018",
        licence=_CHALLENGE_LICENCE,
        attribution=_HAM_ATTRIBUTION,
        citation=(
            "N. Codella et al.: Skin lesion analysis toward melanoma detection 2018: a challenge hosted by the "
            "International Skin Imaging Collaboration. arXiv:1902.03368. Images: " + _HAM_CITATION
        ),
        defects=(
            "Its training images are HAM10000: 10,015 images of 7,470 lesions, and lesion ids come in a file of their "
            "own. Balanced accuracy fell from 76 to 68.5 % once lesions were kept together.",
            "The official scorer gives one test image, ISIC_0035068, the weight zero.",
            _AKIEC_DEFECT,
        ),
        published_results=(
            "Balanced accuracy on its test images: .885 (ten nets, external data), .871 (best single net).",
        ),
    ),
    KnownDataset(
        key="isic2019",
        title="ISIC 2019, training images",
        counts=_counts_without_split(
            {"MEL": 4522, "NV": 12875, "BCC": 3323, "AK": 867, "BKL": 2624, "DF": 239, "VASC": 253, "SCC": 628}
        ),
        file_pattern=_ISIC_FILE_PATTERN,
        lesion_id_pattern=r"(HAM|BCN|MSK\d?)_\d+",
        contained_keys=("ham10000",),
        name_pattern=r"isic(challenge)?2019",
        licence=_CHALLENGE_LICENCE,
        attribution="HAM10000, BCN20000 and MSK data sets",
        citation=(
            _HAM_CITATION + " N. Codella et al.: Skin lesion analysis toward melanoma detection, ISBI 2017. "
            "M. Combalia et al.: BCN20000: dermoscopic lesions in the wild. arXiv:1908.02288."
        ),
        defects=(
            "It holds HAM10000 whole, beside two other archives: the archive tells about the class.",
            "About 8 % of the images have no lesion id, and there are no patient ids.",
            "Images of one archive are 1024 pixels wide, of another 600 x 450: size alone tells the archive.",
        ),
        published_results=(
            "Balanced accuracy of the best entry: 63.6 % on the test images, 74.2 % in cross-validation.",
        ),
    ),
    KnownDataset(
        key="isic2020",
        title="ISIC 2020 (SIIM-ISIC), training images",
        counts=_counts_without_split({"benign": 32542, "malignant": 584}),
        other_counts=(
            MappingProxyType(
                {
                    "unknown": 27124,
                    "nevus": 5193,
                    "melanoma": 584,
                    "seborrheic keratosis": 135,
                    "lentigo NOS": 44,
                    "lichenoid keratosis": 37,
                    "solar lentigo": 7,
                    "cafe-au-lait macule": 1,
                    "atypical melanocytic proliferation": 1,
                }
            ),
        ),
        file_pattern=_ISIC_FILE_PATTERN,
        patient_id_pattern=r"IP_\d+",
        name_pattern=r"isic(challenge)?2020|siim(isic)?",
        licence=_CHALLENGE_LICENCE,
        attribution=_ARCHIVE_ATTRIBUTION,
        citation=(
            "V. Rotemberg et al.: A patient-centric dataset of images and metadata for identifying melanomas using "
            "clinical context. Scientific Data 8, 34 (2021). doi:10.1038/s41597-021-00815-z"
        ),
        defects=(
            "425 duplicates, by the list published with it.",
            "584 of 33,126 images are melanomas (1.8 %): answering benign always has accuracy 98.2 %.",
            "Most benign images (27,124) have no diagnosis; diagnosis and benign_malignant give the label away.",
        ),
        published_results=("AUROC of the winning entry: .9490 (18 nets of five folds each).",),
    ),
    KnownDataset(
        key="isic2024",
        title="ISIC 2024 (SLICE-3D), training images",
        counts=_counts_without_split({"benign": 400666, "malignant": 393}),
        other_counts=(MappingProxyType({"0": 400666, "1": 393}),),
        file_pattern=r"ISIC_\d{7}",
        patient_id_pattern=r"IP_\d+",
        name_pattern=r"isic(challenge)?2024|slice3d",
        licence="CC BY-NC 4.0, or CC0, CC BY and CC BY-NC in its permissive part",
        attribution=_ARCHIVE_ATTRIBUTION,
        citation=(
            "N. Kurtansky et al.: The SLICE-3D dataset: 400,000 skin lesion image crops extracted from 3D TBP for "
            "skin cancer detection. Scientific Data 11, 884 (2024). doi:10.1038/s41597-024-03743-w"
        ),
        defects=(
            "393 of 401,059 images are malignant (0.1 %): accuracy says nothing.",
            "Crops of whole-body photographs, no dermoscopy: a net made on dermoscopy sees other pictures here.",
        ),
        published_results=(
            "Partial AUROC above 80 % sensitivity (0 to 0.2, chance 0.02) of the best entry: .17264.",
        ),
    ),
    KnownDataset(
        key="dermamnist",
        title="DermaMNIST (MedMNIST)",
        counts=_counts_by_split(
            train=_ham_counts(228, 359, 769, 80, 779, 4693, 99),
            validation=_ham_counts(33, 52, 110, 12, 111, 671, 14),
            test=_ham_counts(66, 103, 220, 23, 223, 1341, 29),
        ),
        file_pattern=_MEDMNIST_FILE_PATTERN,
        contained_keys=("ham10000",),
        name_pattern=r"dermamnist(?!\d*[ce]$|corrected|extended)",
        licence="CC BY-NC 4.0",
        attribution=_HAM_ATTRIBUTION + ", in MedMNIST (2023)",
        citation=(
            "J. Yang et al.: MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D biomedical image "
            "classification. Scientific Data 10, 41 (2023). doi:10.1038/s41597-022-01721-8. Images: "
            + _HAM_CITATION
        ),
        defects=(
            "44 % of its test images share a lesion with the training images, and no lesion ids are given.",
            "Its images are HAM10000's, at 28 to 224 pixels: no test of a model made on HAM10000.",
            _AKIEC_DEFECT,
        ),
        published_results=(
            "AUROC / accuracy: ResNet-50 at 224 pixels .912 / .731, Google AutoML .914 / .768. The leak is in both.",
        ),
    ),
    KnownDataset(
        key="dermamnist-c",
        title="DermaMNIST-C, corrected",
        counts=_counts_without_split(_HAM_COUNTS),
        split_sizes=MappingProxyType({"train": 8215, "validation": 573, "test": 1227}),
        file_pattern=_MEDMNIST_FILE_PATTERN,
        contained_keys=("ham10000",),
        name_pattern=r"dermamnist\d*(c$|corrected)",
        licence="CC BY-NC 4.0",
        attribution=_HAM_ATTRIBUTION,
        citation=(
            "K. Abhishek, A. Jain, G. Hamarneh: Investigating the quality of DermaMNIST and Fitzpatrick17k "
            "dermatological image datasets. Scientific Data 12 (2025). Images: " + _HAM_CITATION
        ),
        defects=("Its images are HAM10000's: no test of a model made on HAM10000.", _AKIEC_DEFECT),
        published_results=(
            "AUROC / accuracy: ResNet-18 at 28 pixels .946 / .825, ResNet-50 at 224 pixels .948 / .847.",
        ),
    ),
    KnownDataset(
        key="dermamnist-e",
        title="DermaMNIST-E, extended",
        counts=_counts_by_split(train=_HAM_COUNTS),
        split_sizes=MappingProxyType({"train": 10015, "validation": 193, "test": 1511}),
        file_pattern=_MEDMNIST_FILE_PATTERN,
        contained_keys=("ham10000",),
        name_pattern=r"dermamnist\d*(e$|extended)",
        licence="CC BY-NC 4.0",
        attribution=_HAM_ATTRIBUTION,
        citation=(
            "K. Abhishek, A. Jain, G. Hamarneh: Investigating the quality of DermaMNIST and Fitzpatrick17k "
            "dermatological image datasets. Scientific Data 12 (2025). Images: " + _HAM_CITATION
        ),
        defects=("Its training images are HAM10000, its test images those of ISIC 2018.", _AKIEC_DEFECT),
        published_results=("AUROC / accuracy: ResNet-18 at 28 pixels .888 / .684.",),
    ),
    KnownDataset(
        key="ph2",
        title="PH2",
        counts=_counts_without_split({"common nevus": 80, "atypical nevus": 80, "melanoma": 40}),
        other_counts=(MappingProxyType({"nevus": 160, "melanoma": 40}),),
        file_pattern=r"IMD\d{3}",
        file_name_is_proof=True,
        name_pattern=r"(?<![a-z])ph2(?!\d)",
        archive="",
        licence="for research and teaching only",
        attribution="Mendonca et al., PH2 (2013)",
        citation=(
            "T. Mendonca et al.: PH2, a dermoscopic image database for research and benchmarking. 35th conference of "
            "the IEEE Engineering in Medicine and Biology Society (2013)."
        ),
        defects=("200 images, 40 of them melanomas: an interval of a sensitivity is about 30 points wide.",),
    ),
    KnownDataset(
        key="pad-ufes-20",
        title="PAD-UFES-20",
        counts=_counts_without_split({"BCC": 845, "ACK": 730, "NEV": 244, "SEK": 235, "SCC": 192, "MEL": 52}),
        file_pattern=r"PAT_\d+_\d+_\d+",
        file_name_is_proof=True,
        name_pattern=r"padufes(20)?",
        archive="",
        licence="CC BY 4.0",
        attribution="Pacheco et al., PAD-UFES-20 (2020)",
        citation=(
            "A. Pacheco et al.: PAD-UFES-20: a skin lesion dataset composed of patient data and clinical images "
            "collected from smartphones. Data in Brief 32, 106221 (2020). doi:10.1016/j.dib.2020.106221"
        ),
        defects=(
            "Photographs by smartphone, no dermoscopy: a net made on dermoscopy sees other pictures here.",
            "2,298 images of 1,641 lesions and 1,373 patients: split by patient.",
        ),
    ),
)
