"""How tables in the languages and encodings of shops are read: right, asked about, or wrong.

    python scripts/languages.py --tables 30

Tables of 10, 40 and 200 rows are drawn from words that no test uses, most of them plain ASCII as in real tables. Exit
code 1 where one is read wrong.
"""

# ruff: noqa: RUF001 - signs that look alike are what is tried

import argparse
import random
import sys
from collections import Counter

from catalens.errors import CatalogError
from catalens.reading import detect_encoding

WESTERN, UNICODE = ("cp1252", "iso-8859-1", "iso-8859-15", "mac-roman"), ("utf-8", "utf-8-sig", "utf-16")
PAGES = {
    **dict.fromkeys(("fr", "es", "pt", "it", "de", "sv", "da", "nl", "en"), WESTERN),
    **dict.fromkeys(("pl", "cs", "hu"), ("cp1250", "iso-8859-2")),
    "tr": ("cp1254", "iso-8859-9"),
    "ru": ("cp1251", "koi8-r", "iso-8859-5"),
    "el": ("cp1253", "iso-8859-7"),
}
WORDS = {
    "fr": "lampe table canapé étagère chaise bibliothèque rideau miroir vase coussin brodé tapis berbère lin "
    "lavé bougie parfumée panier tressé commode en chêne massif pied métal réglable intérieur extérieur "
    "série limitée noir forêt gâteau",
    "es": "mesa silla cajón estantería colchón lámpara cojín alfombra espejo jarrón cortina vela aromática "
    "cesta de mimbre cómoda roble macizo metal fundición edición limitada interior jardín señal pañuelo "
    "montaña azul",
    "pt": "mesa cadeira colchão estante almofada tapete espelho jarro cortina vela perfumada cesto em vime "
    "cómoda carvalho maciço metal edição limitada interior exterior maçaneta fogão pão açúcar azul chão",
    "it": "tavolo sedia cassetto libreria cuscino tappeto specchio vaso tenda candela profumata cesto in vimini "
    "rovere massello metallo edizione limitata interno esterno comodità novità papà tiramisù blu perché "
    "caffè",
    "de": "Tisch Stuhl Schrank Regal Kissen Teppich Spiegel Vase Vorhang Kerze Korb aus Weide Kommode Eiche "
    "massiv Metall höhenverstellbar Küche Gäste Möbel Füße Sitzhöhe Bücher Größen natürlich Käse blau",
    "sv": "bord stol hylla kudde matta spegel vas gardin ljus korg av rotting byrå ek massiv metall justerbar "
    "höjd trädgård kök sängkläder påslakan örngott ståltråd fågel blå fönster gräs",
    "da": "bord stol hylde pude tæppe spejl vase gardin lys kurv af pil kommode egetræ massiv metal justerbar "
    "højde have køkken sengetøj pudebetræk ståltråd fugl blå vindue græs lærred ørering",
    "nl": "tafel stoel kast plank kussen tapijt spiegel vaas gordijn kaars mand van riet commode eiken massief "
    "metaal verstelbaar hoogte tuin keuken beddengoed één ideeën coördinaat geïntegreerd blauw raam café",
    "en": "table chair shelf cushion carpet mirror vase curtain candle basket wicker dresser oak solid metal "
    "adjustable café décor appliqué women’s men’s “classic” – limited façade jalapeño blue navy",
    "pl": "stół krzesło półka poduszka dywan lustro wazon zasłona świeca kosz wiklinowy komoda dąb lity metal "
    "regulowana wysokość ogród kuchnia pościel złoto książki łóżko błękit okno trawa żaba",
    "cs": "stůl židle police polštář koberec zrcadlo váza závěs svíčka koš proutěný komoda dub masiv kov "
    "nastavitelná výška zahrada kuchyň ložní prádlo zlatá knihy postel modrá okno tráva žába",
    "hu": "asztal szék polc párna szőnyeg tükör váza függöny gyertya kosár fonott komód tölgy tömör fém "
    "állítható magasság kert konyha ágynemű arany könyvek ágy kék ablak fű béka",
    "tr": "masa sandalye raf yastık halı ayna vazo perde mum sepet hasır şifonyer meşe masif metal "
    "ayarlanabilir yükseklik bahçe mutfak nevresim altın kitaplar yatak mavi pencere çim kurbağa",
    "ru": "стол стул полка подушка ковёр зеркало ваза штора свеча корзина плетёная комод дуб массив металл "
    "высота сад кухня постельное бельё золото книги кровать синий окно трава",
    "el": "τραπέζι καρέκλα ράφι μαξιλάρι χαλί καθρέφτης βάζο κουρτίνα κερί καλάθι συρταριέρα δρυς μέταλλο ύψος "
    "κήπος κουζίνα σεντόνια χρυσό βιβλία κρεβάτι μπλε παράθυρο",
}


def drawn(language: str, rows: int, dice: random.Random) -> str:
    """A table of a shop; titles of three words."""
    words = WORDS[language].split()
    kinds = [dice.choice(words) for _ in range(4)]
    titles = [" ".join(dice.sample(words, 3)).capitalize() for _ in range(rows)]
    lines = [f"{row};{title};{dice.choice(kinds)};{dice.randint(5, 99)},90" for row, title in enumerate(titles)]
    return "\r\n".join(["sku;title;category;price", *lines]) + "\r\n"


def main() -> None:
    """Draw, encode, detect, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=20, help="tables of each size")
    parser.add_argument("--languages", nargs="*", default=list(PAGES))
    asked = parser.parse_args()
    count = asked.tables
    wrong = 0
    print(f"{'':15}" + "".join(f"{f'{rows} rows: right, asked, wrong':>32}" for rows in (10, 40, 200)))
    for language in asked.languages:
        for page in (*PAGES[language], *UNICODE):
            line = f"{language:3}{page:12}"
            for rows in (10, 40, 200):
                found = Counter(outcome(language, page, rows, seed) for seed in range(count))
                wrong += found["wrong"]
                line += f"{found['right']:>22}{found['asked']:>5}{found['wrong']:>5}"
            print(line, flush=True)
    sys.exit(wrong > 0)


def outcome(language: str, page: str, rows: int, seed: int) -> str:
    """Say how one table is read."""
    text = drawn(language, rows, random.Random(f"{language} {rows} {seed}"))
    data = text.encode(page, errors="ignore")
    try:
        found = detect_encoding("table.csv", data)
    except CatalogError:
        return "asked"
    read = data.decode(found).removeprefix("\ufeff")
    return "right" if read == data.decode(page).removeprefix("\ufeff") else "wrong"


if __name__ == "__main__":
    main()
