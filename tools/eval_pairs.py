"""Made-up pairs of a gold answer and a reply's box, of the kinds of answer that MATH-500 has: right ones in
other forms, and near misses. What is equal is so by construction. For tools/eval_agreement.py."""
from fractions import Fraction

PER_KIND = 26  # half of them equal


def frac(f, form):
    sign = "-" if f < 0 else ""
    n, d = abs(f.numerator), f.denominator
    return {"frac": f"{sign}\\frac{{{n}}}{{{d}}}", "dfrac": f"{sign}\\dfrac{{{n}}}{{{d}}}",
            "slash": f"{sign}{n}/{d}", "doubled": f"{sign}\\frac{{{2 * n}}}{{{2 * d}}}"}[form]


def some_fraction(rng):
    while True:
        f = Fraction(rng.randint(-40, 40), rng.randint(2, 19))
        if f.denominator > 1:
            return f


def kinds(rng):
    """Yields (kind, gold, candidate, equal): what is equal is so by construction."""
    def integer():
        n = rng.randint(-500, 5000)
        yield str(n), rng.choice([str(n), f"{n}.0", f"${n}$", f"\\text{{{n}}}"]), True
        yield str(n), str(n + rng.choice([-1, 1, 10])), False

    def thousands():
        n = rng.randint(1000, 9_999_999)
        yield str(n), rng.choice([f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", "\\!,")]), True
        yield f"{n:,}", str(n + 1000), False

    def fraction():
        f = some_fraction(rng)
        yield frac(f, "frac"), frac(f, rng.choice(["dfrac", "slash", "doubled"])), True
        yield frac(f, "frac"), frac(-f, "frac"), False

    def decimal():
        f = Fraction(rng.randint(1, 999), rng.choice([2, 4, 5, 8, 10, 20]))
        yield frac(f, "frac") if f.denominator > 1 else str(f), f"{float(f):g}" if f < 1e5 else str(f), True
        third = Fraction(rng.choice([1, 2, 4, 5, 7]), rng.choice([3, 9]))
        yield frac(third, "frac"), f"{float(third):.3f}", False

    def radical():
        a, b = rng.randint(2, 9), rng.choice([2, 3, 5, 7])
        yield f"{a}\\sqrt{{{b}}}", rng.choice([f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{b}"]), True
        yield f"{a}\\sqrt{{{b}}}", f"{b}\\sqrt{{{a + 11}}}", False

    def pi():
        a, b = rng.randint(2, 30), rng.choice([3, 5, 7])
        yield f"\\frac{{{a}\\pi}}{{{b}}}", rng.choice([f"\\frac{{{a}}}{{{b}}}\\pi", f"{a}\\pi/{b}"]), True
        yield f"{a}\\pi", str(a), False

    def polynomial():
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        yield f"x^2 + {a + b}x + {a * b}", f"(x+{a})(x+{b})", True
        yield f"x^2 + {a + b}x + {a * b}", f"(x-{a})(x+{b})", False

    def interval():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield f"[{a},{b})", f"\\left[{a}, {b}\\right)", True
        yield f"[{a},{b})", f"({a},{b}]", False

    def union():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield (f"(-\\infty,{a}) \\cup ({b},\\infty)", f"(-\\infty, {a})\\cup({b}, \\infty)", True)
        yield (f"(-\\infty,{a}) \\cup ({b},\\infty)", f"(-\\infty,{a}] \\cup [{b},\\infty)", False)

    def point():
        a, b = rng.randint(-9, 9), some_fraction(rng)
        yield f"({a}, {frac(b, 'frac')})", f"\\left({a},{frac(b, 'dfrac')}\\right)", True
        yield f"({a}, {a + 1})", f"({a + 1}, {a})", False

    def listed():
        values = rng.sample(range(-30, 30), 3)
        other = rng.sample(values, 3)
        yield ", ".join(map(str, values)), ",".join(map(str, other)), True
        yield ", ".join(map(str, values)), ", ".join(map(str, values[:2] + [values[2] + 1])), False

    def assignment():
        f = some_fraction(rng)
        yield frac(f, "frac"), f"x = {frac(f, 'slash')}", True
        yield frac(f, "frac"), f"x = {frac(f + 1, 'frac')}", False

    def percent():
        n = rng.randint(1, 95)
        yield f"{n}\\%", str(n), True
        yield f"{n}\\%", f"{n + 3}\\%", False

    def unit():
        n = rng.randint(2, 300)
        what = rng.choice(["cm", "meters", "square units", "degrees", "miles", "hours"])
        yield f"{n}\\text{{ {what}}}", str(n), True
        yield str(n), f"{n + 5}\\text{{ {what}}}", False

    def degree():
        n = rng.randint(1, 359)
        yield f"{n}^\\circ", rng.choice([str(n), f"{n}^{{\\circ}}"]), True
        yield f"{n}^\\circ", f"{n + 1}^\\circ", False

    def base():
        n, b = rng.randint(5, 400), rng.choice([2, 3, 5, 7, 8])
        digits = ""
        while n:
            digits, n = str(n % b) + digits, n // b
        yield f"{digits}_{b}", rng.choice([f"{digits}_{{{b}}}", digits]), True
        yield f"{digits}_{b}", f"{digits}_{b + 1}", False

    def complex_number():
        a, b = rng.randint(1, 20), rng.randint(2, 20)
        yield f"{a} + {b}i", f"{b}i+{a}", True
        yield f"{a} + {b}i", f"{a} - {b}i", False

    def power():
        a, n = rng.randint(2, 12), rng.randint(3, 9)
        yield f"{a}^{{{n}}}", str(a**n), True
        yield f"{a}^{{{n}}}", str(a**n + 1), False

    def text():
        words = ["Evelyn", "Monday", "even", "odd", "ellipse", "hyperbola", "east"]
        a, b = rng.sample(words, 2)
        yield f"\\text{{{a}}}", rng.choice([a, a.lower(), f"\\text{{{a.lower()}}}"]), True
        yield f"\\text{{{a}}}", b, False

    def letter():
        a, b = rng.sample("ABCDE", 2)
        yield f"\\text{{({a})}}", rng.choice([a, f"({a})", f"\\text{{{a}}}"]), True
        yield f"\\text{{({a})}}", b, False

    def matrix():
        v = [rng.randint(-9, 9) for _ in range(2)]
        def column(kind, values):
            return f"\\begin{{{kind}}} {values[0]} \\\\ {values[1]} \\end{{{kind}}}"
        yield column("pmatrix", v), column("bmatrix", v), True
        yield column("pmatrix", v), column("pmatrix", [v[0], v[1] + 1]), False

    def plus_minus():
        a, b = rng.randint(1, 9), rng.choice([2, 3, 5])
        yield f"{a} \\pm \\sqrt{{{b}}}", f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}", True
        yield f"{a} \\pm \\sqrt{{{b}}}", f"{a}+\\sqrt{{{b}}}", False

    def equation():
        a, b = rng.randint(2, 9), rng.randint(1, 20)
        yield f"y = {a}x + {b}", rng.choice([f"y={b}+{a}x", f"{a}x - y + {b} = 0"]), True
        yield f"y = {a}x + {b}", f"y = {a}x - {b}", False

    def mixed():
        a, f = rng.randint(1, 9), Fraction(rng.randint(1, 4), 5)
        yield f"{a}{frac(f, 'frac')}", frac(a + f, "frac"), True
        yield f"{a}{frac(f, 'frac')}", frac(a * f, "frac") if (a * f).denominator > 1 else str(a * f), False

    def dollars():
        n = rng.randint(2, 99_999)
        yield f"\\${n:,}", rng.choice([str(n), f"\\${n}", f"${n}$", f"\\${n:,}.00", f"{n} \\text{{ dollars}}"]), True
        yield f"\\${n}.50", f"{n}.05", False

    def shorthand():
        a, b = rng.sample(range(1, 10), 2)
        yield f"\\frac{{{a}}}{{{b}}}", rng.choice([f"\\frac{a}{b}", f"\\frac {a}{b}", f"\\frac{a}{{{b}}}"]), True
        yield f"\\frac{{{a}}}{{{b}}}", f"\\frac{b}{a}", False

    def sign():
        f = abs(some_fraction(rng))
        n, d = f.numerator, f.denominator
        yield f"-\\frac{{{n}}}{{{d}}}", rng.choice([f"\\frac{{-{n}}}{{{d}}}", f"\\frac{{{n}}}{{-{d}}}", f"-{n}/{d}"]), True
        yield f"-\\frac{{{n}}}{{{d}}}", f"\\frac{{-{n}}}{{-{d}}}", False

    def quadratic_root():
        a, b, c = rng.randint(1, 9), rng.choice([2, 3, 5, 7, 11]), rng.choice([2, 3, 4, 6])
        yield (f"\\frac{{{a}+\\sqrt{{{b}}}}}{{{c}}}",
               rng.choice([f"\\frac{{{a}}}{{{c}}} + \\frac{{\\sqrt{{{b}}}}}{{{c}}}", f"({a}+\\sqrt{b})/{c}"]), True)
        yield f"\\frac{{{a}+\\sqrt{{{b}}}}}{{{c}}}", f"{a}+\\frac{{\\sqrt{{{b}}}}}{{{c}}}", False

    def rationalised():
        a, b = rng.randint(1, 9), rng.choice([2, 3, 5, 7])
        yield f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}", f"\\frac{{{a}}}{{\\sqrt{{{b}}}}}", True
        yield f"\\frac{{{a}\\sqrt{{{b}}}}}{{{b}}}", f"\\frac{{{a}}}{{{b}}}", False

    def cube_root():
        a, b = rng.randint(2, 5), rng.choice([2, 3, 5])
        yield f"{a}\\sqrt[3]{{{b}}}", rng.choice([f"\\sqrt[3]{{{a**3 * b}}}", f"{a} \\cdot {b}^{{1/3}}"]), True
        yield f"{a}\\sqrt[3]{{{b}}}", f"{a}\\sqrt{{{b}}}", False

    def factored():
        a, b = rng.randint(2, 9), rng.randint(2, 5)
        yield str(2**a * 3**b), rng.choice([f"2^{a} \\cdot 3^{b}", f"2^{{{a}}} \\times 3^{{{b}}}"]), True
        yield str(2**a * 3**b), f"2^{b} \\cdot 3^{{{a + 9}}}", False

    def scientific():
        a, n = rng.randint(11, 99), rng.randint(3, 9)
        yield f"{a}" + "0" * n, f"{a / 10} \\times 10^{{{n + 1}}}", True
        yield f"{a / 10} \\times 10^{{-{n}}}", f"{a / 10} \\times 10^{{{n}}}", False

    def factorial():
        n = rng.randint(3, 9)
        value = 1
        for i in range(2, n + 1):
            value *= i
        yield f"{n}!", str(value), True
        yield f"{n}!", str(value + n), False

    def binomial():
        n, k = rng.randint(5, 12), rng.randint(2, 4)
        from math import comb
        yield str(comb(n, k)), f"\\binom{{{n}}}{{{k}}}", True
        yield str(comb(n, k)), f"\\binom{{{n}}}{{{k - 1}}}", comb(n, k) == comb(n, k - 1)

    def logarithm():
        a, b = rng.choice([2, 3, 5, 7]), rng.randint(2, 6)
        yield str(b), f"\\log_{a} {a**b}" if a < 10 else "", True
        yield f"\\ln {a}", f"\\log_{{10}} {a}", False

    def trigonometry():
        a = rng.randint(2, 9)
        yield f"\\frac{{{a}}}{{2}}", f"{a} \\sin \\frac{{\\pi}}{{6}}", True
        yield f"\\frac{{{a}}}{{2}}", f"{a} \\cos \\frac{{\\pi}}{{6}}", False

    def polynomial_order():
        a, b, c = (rng.randint(2, 9) for _ in range(3))
        yield f"{a}x^3 - {b}x + {c}", rng.choice([f"{c} - {b}x + {a}x^3", f"{a} x^{{3}}-{b} x+{c}"]), True
        yield f"{a}x^3 - {b}x + {c}", f"{a}x^2 - {b}x + {c}", False

    def two_variables():
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        yield f"{a}p - {b}q", rng.choice([f"-{b}q + {a}p", f"{a}p-{b} \\cdot q"]), True
        yield f"{a}p - {b}q", f"{a}q - {b}p", False

    def rational_function():
        a = rng.randint(1, 9)
        yield f"\\frac{{x^2-{a * a}}}{{x+1}}", f"\\frac{{(x-{a})(x+{a})}}{{x+1}}", True
        yield f"\\frac{{1}}{{x+{a}}}", f"\\frac{{1}}{{x}}+{a}", False

    def triple():
        v = [rng.randint(-9, 9) for _ in range(3)]
        yield f"({v[0]},{v[1]},{v[2]})", f"\\left( {v[0]}, {v[1]}, {v[2]} \\right)", True
        yield f"({v[0]},{v[1]},{v[2]})", f"({v[0]},{v[1]},{v[2] + 1})", False

    def polar():
        a, b = rng.randint(2, 9), rng.choice([2, 3, 4, 6])
        yield f"\\left( {a}, \\frac{{\\pi}}{{{b}}} \\right)", f"({a}, \\pi/{b})", True
        yield f"\\left( {a}, \\frac{{\\pi}}{{{b}}} \\right)", f"({a}, -\\frac{{\\pi}}{{{b}}})", False

    def braces():
        values = rng.sample(range(-20, 20), 3)
        other = rng.sample(values, 3)
        yield f"\\{{{values[0]}, {values[1]}, {values[2]}\\}}", f"\\{{{other[0]},{other[1]},{other[2]}\\}}", True
        yield f"\\{{{values[0]}, {values[1]}\\}}", f"\\{{{values[0]}, {values[1]}, {values[2]}\\}}", False

    def joined_by_and():
        a, b = rng.sample(range(-20, 30), 2)
        yield f"{a}, {b}", rng.choice([f"{a} \\text{{ and }} {b}", f"{b} \\text{{ or }} {a}", f"x = {a}, x = {b}"]), True
        yield f"{a}, {b}", f"{a} \\text{{ and }} {b + 1}", False

    def surds_listed():
        a, b = rng.randint(2, 9), rng.choice([2, 3, 5])
        yield f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}", rng.choice([f"{a} \\pm \\sqrt{{{b}}}", f"{a}-\\sqrt{{{b}}},{a}+\\sqrt{{{b}}}"]), True
        yield f"{a}+\\sqrt{{{b}}}, {a}-\\sqrt{{{b}}}", f"{a} \\pm \\sqrt{{{b + 6}}}", False

    def membership():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield f"x \\in [{a},{b}]", f"[{a}, {b}]", True
        yield f"x \\in [{a},{b}]", f"x \\in ({a},{b})", False

    def open_interval():
        a = rng.randint(-20, 30)
        yield f"(-\\infty, {a})", rng.choice([f"(-\\infty,{a})", f"x \\in (-\\infty, {a})"]), True
        yield f"(-\\infty, {a})", f"({a}, \\infty)", False

    def unit_power():
        n = rng.randint(2, 300)
        what = rng.choice(["\\mbox{ cm}^2", "\\text{ cm}^3", "\\,\\text{m}^2", "\\ \\mathrm{ft}^{2}"])
        yield f"{n}{what}", rng.choice([str(n), f"{n} \\text{{ square units}}"]), True
        yield f"{n}{what}", str(n * n), False

    def unit_of_fraction():
        f = abs(some_fraction(rng))
        yield f"{frac(f, 'frac')} \\text{{ inches}}", rng.choice([frac(f, "slash"), frac(f, "dfrac")]), True
        yield f"{frac(f, 'frac')} \\text{{ inches}}", frac(f + 1, "frac"), False

    def named_function():
        a, b = rng.randint(2, 9), rng.randint(1, 9)
        yield f"{a}x + {b}", rng.choice([f"f(x) = {a}x+{b}", f"y = {a}x+{b}", f"{b}+{a}x"]), True
        yield f"{a}x + {b}", f"f(x) = {a}x-{b}", False

    def line_equation():
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 30)
        yield f"{a}x + {b}y = {c}", rng.choice([f"{2 * a}x + {2 * b}y = {2 * c}", f"{c} = {b}y + {a}x"]), True
        yield f"{a}x + {b}y = {c}", f"{a}x - {b}y = {c}", False

    def absolute():
        a = rng.randint(2, 20)
        yield f"|x - {a}|", rng.choice([f"|{a} - x|", f"\\lvert x-{a} \\rvert", f"\\left|x-{a}\\right|"]), True
        yield f"|x - {a}|", f"x - {a}", False

    def matrix_two():
        v = [rng.randint(-9, 9) for _ in range(4)]
        def square(kind, w):
            return f"\\begin{{{kind}}} {w[0]} & {w[1]} \\\\ {w[2]} & {w[3]} \\end{{{kind}}}"
        yield square("pmatrix", v), square("bmatrix", v).replace(" ", ""), True
        yield square("pmatrix", v), square("pmatrix", [v[0], v[2] + 10, v[1], v[3]]), False

    def exponential():
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        yield f"e^{{{a}}}", rng.choice([f"e^{a}", f"\\exp({a})"]), True
        yield f"{b}e^{{{a}}}", f"{b}e^{{-{a}}}", False

    def root_power():
        a, n = rng.choice([2, 3, 5]), rng.choice([3, 5, 7])
        yield f"{a}^{{{n}/2}}", f"{a**(n // 2)}\\sqrt{{{a}}}", True
        yield f"{a}^{{{n}/2}}", f"{a**(n // 2)}", False

    def no_leading_zero():
        n = rng.randint(1, 999)
        yield f".{n:03}", f"0.{n:03}", True
        yield f".{n:03}", f"0.0{n:03}", False

    def trailing():
        n = rng.randint(2, 900)
        yield str(n), rng.choice([f"{n}.", f"\\textbf{{{n}}}", f"\\mathbf{{{n}}}", f"{{{n}}}", f"\\boldsymbol{{{n}}}", f" {n} "]), True
        yield str(n), f"{n}0", False

    def time():
        h, m = rng.randint(1, 12), rng.randint(10, 59)
        yield f"{h}:{m}", rng.choice([f"{h}:{m}", f"{h}{{:}}{m}", f"\\text{{{h}:{m}}}"]), True
        yield f"{h}:{m}", f"{h}:{m - 1}", False

    def date():
        d = rng.randint(1, 30)
        yield f"\\text{{June }} {d}", rng.choice([f"\\text{{June {d}}}", f"June {d}"]), True
        yield f"\\text{{June {d}}}", f"\\text{{June {d + 1}}}", False

    def ratio():
        a, b = rng.sample([2, 3, 5, 7, 11, 13], 2)
        yield f"{a}:{b}", f"{a} : {b}", True
        yield f"{a}:{b}", f"{b}:{a}", False

    def complex_fraction():
        a, b, c = rng.randint(1, 9), rng.randint(1, 9), rng.choice([2, 3, 5])
        yield f"\\frac{{{a}}}{{{c}}} + \\frac{{{b}}}{{{c}}}i", rng.choice([f"\\frac{{{a}+{b}i}}{{{c}}}", f"\\frac{{{b}i + {a}}}{{{c}}}"]), True
        yield f"\\frac{{{a}}}{{{c}}} + \\frac{{{b}}}{{{c}}}i", f"\\frac{{{a}-{b}i}}{{{c}}}", False

    def inequality():
        a = rng.randint(-20, 20)
        yield f"x > {a}", rng.choice([f"{a} < x", f"x>{a}"]), True
        yield f"x > {a}", f"x \\ge {a}", False

    def between():
        a, b = sorted(rng.sample(range(-20, 30), 2))
        yield f"{a} \\le x \\le {b}", rng.choice([f"{a} \\leq x \\leq {b}", f"[{a},{b}]"]), True
        yield f"{a} \\le x \\le {b}", f"{a} < x < {b}", False

    makers = [integer, thousands, fraction, decimal, radical, pi, polynomial, interval, union, point, listed,
              assignment, percent, unit, degree, base, complex_number, power, text, letter, matrix, plus_minus,
              equation, mixed,
              dollars, shorthand, sign, quadratic_root, rationalised, cube_root,
              factored, scientific, factorial, binomial, logarithm, trigonometry,
              polynomial_order, two_variables, rational_function, triple, polar, braces,
              joined_by_and, surds_listed, membership, open_interval, unit_power, unit_of_fraction,
              named_function, line_equation, absolute, matrix_two, exponential, root_power,
              no_leading_zero, trailing, time, date, ratio, complex_fraction,
              inequality, between]
    for maker in makers:
        for _ in range(PER_KIND // 2):
            for gold, candidate, equal in maker():
                yield maker.__name__, gold, candidate, equal
