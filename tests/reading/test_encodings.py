"""Tables in the code pages that spreadsheets write: read right, or asked about, never read wrong."""

import random
from pathlib import Path

import pytest

from catalens.errors import CatalogError
from catalens.reading import ReadSpec, detect_encoding, open_source

WORDS = {
    (
        "cp1252",
        "fr",
    ): "robe été fenêtre cuir chaussure élégante légère à col côtelé crème garçon noël forêt façade bébé "
    "œillet épaule première manches déperlant bleu où très doublée qualité sûr hôtel maïs",
    (
        "cp1252",
        "es",
    ): "bolígrafo pantalón niño niñas algodón azul marrón señora cinturón pequeño otoño tamaño plástico "
    "lámpara sofá jardín baño teléfono cuero diseño edición muñeca año cigüeña pingüino",
    (
        "cp1252",
        "pt",
    ): "calça botão cordão sapato irmão algodão coleção verão até à português avó café lençóis edições "
    "confecção três gravação mãe não você cômoda útil fácil pêssego camisão",
    (
        "cp1252",
        "it",
    ): "qualità più città perché lampada caffè tè velluto metà però così lunedì bambù novità tribù menù "
    "elegante è università varietà giù virtù felicità già ragù papà libertà onestà",
    ("cp1252", "de"): "größe grün hellblau straße weiß schwarz tür für bügel süß schön mütze höhe gürtel königsblau "
    "außen träger büro lösung fußball stühle wärme öl übergröße mädchen",
    (
        "cp1252",
        "sv",
    ): "blå röd grön lång kjol för kvinnor märke läder tröja år små hög väska hår två över även här nära "
    "sök kök höst vår båt färg ärm",
    ("cp1252", "da"): "blå rød grøn lang kjole til børn mænd læder trøje år små høj også når køb æble ærme størrelse "
    "mørk sølv grå skærf brød længde håndklæde øre",
    (
        "cp1252",
        "nl",
    ): "financiële coördinaten geïsoleerd één zeeën reünie knieën poëzie ruïne coëfficiënt blauw groene "
    "categorieën industriële België patiënt privé café crème geïmporteerd",
    ("cp1250", "pl"): "żółty łódź czerwony skóra źrebię ćma sukienka dziecięca płaszcz męski spódnica różowy książka "
    "ręcznik świeca złoty główny dłuższy ciepły zażółć gęślą jaźń krzesło",
    ("cp1250", "cs"): "žlutý kůň červená kůže dětské šaty modrá košile příliš bílý řetízek stůl židle světlo těžký "
    "ručník černý dlouhý výška měkký šířka zářivý pěkný oblečení květina",
    (
        "cp1250",
        "hu",
    ): "női bőr cipő férfi kék zöld sötét fehér hosszú ujjú gyerek kötött sál fűző tükör ágynemű törülköző "
    "esernyő székek főző bögre könyv szőnyeg függöny gyűrű",
    (
        "cp1254",
        "tr",
    ): "kırmızı yeşil çanta ayakkabı gömlek büyük küçük çocuk kadın şapka gümüş ışık düğme ipek yün kış "  # noqa: RUF001
    "güneş gözlüğü açık sarı mavi kahverengi eşarp kutu",  # noqa: RUF001
    ("cp1251", "ru"): "красная сумка мягкая кожа женская обувь платье синий мужской детский куртка зимняя большой "
    "чёрный тёплый шарф пальто ремень кошелёк юбка рубашка",
    ("cp1253", "el"): "κόκκινη τσάντα δερμάτινα παπούτσια γυναικεία μπλε ανδρικό φόρεμα παιδικό μεγάλο μικρό ζεστό "
    "κασκόλ πουκάμισο ζώνη άσπρο μαύρη καπέλο",
}
LANGUAGES = [language for _, language in WORDS]
PAGES = {language: page for page, language in WORDS}


def table(language: str, rows: int, seed: int) -> str:
    """A table of a shop in a language; some rows have no letter beyond ASCII."""
    dice = random.Random(f"{language} {rows} {seed}")
    words = WORDS[PAGES[language], language].split()
    kinds = [dice.choice(words).capitalize() for _ in range(4)]
    lines = [
        f"A{row:03d};pix/p{row}.jpg;{' '.join(dice.sample(words, 3)).capitalize()} {row};{dice.choice(kinds)};12.50"
        for row in range(rows)
    ]
    return "\r\n".join(["sku;photo;title;category;price", *lines]) + "\r\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_table_in_a_code_page_is_never_read_wrong(language: str):
    right: dict[int, int] = {}
    for rows, seeds in ((3, 12), (10, 12), (40, 6), (400, 1)):
        right[rows] = 0
        for seed in range(seeds):
            text = table(language, rows, seed)
            data = text.encode(PAGES[language])
            try:
                found = data.decode(detect_encoding("shop.csv", data))
            except CatalogError as error:
                assert "say which with --encoding" in str(error)  # noqa: PT017
                continue
            assert found == text
            right[rows] += 1
    assert right[40] >= 5
    assert right[400] == 1
    if PAGES[language] == "cp1252":
        assert right[10] >= 8
        assert right[3] >= 5


def test_two_readings_are_shown_and_asked_about(tmp_path: Path):
    path = tmp_path / "es.csv"
    path.write_bytes("sku,title,photo\r\n1,Niño azul,a.jpg\r\n".encode("cp1252"))
    with pytest.raises(CatalogError, match=r"'Nińo'.*'Niño'.*say which with --encoding") as caught:
        open_source(str(path))
    assert caught.value.exit_code == 3
    row = next(open_source(str(path), ReadSpec(encoding="cp1252")).rows())
    assert row == {"sku": "1", "title": "Niño azul", "photo": "a.jpg"}


@pytest.mark.parametrize("title", ["12 €", "20 °C, ½ l", "Air® – new", "Größe 8", "Café", "Müller’s", "„rot“ «x»"])  # noqa: RUF001
def test_a_single_western_cell_is_enough_where_pages_agree_or_no_other_reads_well(title: str):
    data = f"sku,title,price\r\n1,{title},5.00\r\n2,Bag,6.00\r\n".encode("cp1252")
    assert data.decode(detect_encoding("shop.csv", data)) == data.decode("cp1252")


@pytest.mark.parametrize("page", ["koi8-r", "cp866", "cp850", "cp852"])
def test_pages_that_no_spreadsheet_writes_are_asked_about(page: str):
    language = {"cp850": "fr", "cp852": "pl"}.get(page, "ru")
    with pytest.raises(CatalogError, match="say which with --encoding"):
        detect_encoding("shop.csv", table(language, 40, 0).replace("œ", "oe").encode(page))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("language", ["fr", "ru", "el", "pl"])
def test_unicode_is_told_with_and_without_a_mark(tmp_path: Path, encoding: str, language: str):
    path = tmp_path / "shop.csv"
    text = table(language, 10, 0)
    path.write_bytes(text.encode(encoding))
    titles = [row["title"] for row in open_source(str(path)).rows() if isinstance(row, dict)]
    assert titles == [line.split(";")[2] for line in text.splitlines()[1:]]


def test_a_damaged_byte_in_utf8_does_not_make_it_a_code_page(tmp_path: Path):
    path = tmp_path / "shop.csv"
    rows = [f"{n},Größe {n},ä.jpg".encode() for n in range(40)]
    rows[7] = b"7,Gr\xc3e 7,a.jpg"
    path.write_bytes(b"sku,title,photo\r\n" + b"\r\n".join(rows))
    read = list(open_source(str(path)).rows())
    assert [row["title"] for n, row in enumerate(read) if isinstance(row, dict) and n != 7] == [
        f"Größe {n}" for n in range(40) if n != 7
    ]
    assert read[7] == {"sku": "7", "title": "Gr\udcffe 7", "photo": "a.jpg"}
